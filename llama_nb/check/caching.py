"""Exercises of chapter 08."""

from collections.abc import Callable

import numpy as np

from llama_nb import session
from llama_nb.check.compare import Verdict, run


def left_pad(function: Callable[[list[list[int]], int], tuple]) -> Verdict:
    """Check `f(prompts, pad) -> (rows, starts)`, prompts of different lengths ending together."""

    def cases():
        for lengths, pad in (((3, 5), 0), ((4,), 9), ((1, 7, 2, 7), 50)):
            rng = np.random.default_rng(len(lengths))
            prompts = [rng.integers(1, 100, length).tolist() for length in lengths]
            starts = [max(lengths) - length for length in lengths]
            rows = [[pad] * start + ids for start, ids in zip(starts, prompts, strict=True)]
            yield f"prompts of {lengths} tokens, pad {pad}", (prompts, pad), (rows, starts)

    return run("left_pad", function, cases())


def cache_view(function: Callable[[np.ndarray, int, int, int], tuple]) -> Verdict:
    """Check `f(starts, length, T, S) -> (positions (B, T), mask (B, T, S))` of T new tokens."""

    def cases():
        for starts, length, T, S in (([0, 0], 0, 4, 4), ([0, 3], 0, 5, 8), ([2, 0, 5], 6, 1, 9)):
            positions = [[max(length + t - s, 0) for t in range(T)] for s in starts]
            mask = [[[s <= k <= length + t for k in range(S)] for t in range(T)] for s in starts]
            about = f"starts {starts}, {T} tokens after {length} in {S} slots"
            yield about, (np.array(starts), length, T, S), (positions, mask)

    return run("cache_view", function, cases())


def bucket(function: Callable[[int, int], int]) -> Verdict:
    """Check `f(size, smallest)`: the least power of two, or 3/4 of one, that holds both."""

    def cases():
        for size, smallest in (
            (1, 16),
            (16, 16),
            (17, 16),
            (25, 16),
            (100, 1),
            (96, 8),
            (4097, 256),
        ):
            about = f"size {size}, smallest {smallest}"
            yield about, (size, smallest), session.bucket(size, smallest)

    return run("bucket", function, cases())
