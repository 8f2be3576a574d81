"""Exercises of chapter 22."""

import itertools
from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def tile_count(function: Callable[[int, int, int], int]) -> Verdict:
    """Check `f(T, queries, keys) -> tiles` of causal scores that are not wholly in the future."""

    def cases():
        for T, queries, keys in (
            (1024, 128, 128),
            (1024, 256, 128),
            (1024, 128, 256),
            (1000, 128, 256),
            (100, 512, 512),
            (700, 512, 128),
        ):
            t, s = np.arange(0, T, queries), np.arange(0, T, keys)
            last = np.minimum(t + queries, T) - 1
            expected = int((s[None, :] <= last[:, None]).sum())
            yield f"T = {T}, tiles of {queries} x {keys}", (T, queries, keys), expected

    return run("tile_count", function, cases(), atol=0.5)


def flash_bytes(function: Callable[..., float]) -> Verdict:
    """Check `f(T, N, K, H, queries, keys, itemsize) -> bytes` that causal flash attention moves.

    Of one sequence; tiles divide T. Queries and outputs pass once. The G query heads of a KV head
    share its blocks, which are read anew for each block of queries, unless the step before had the
    same one.
    """

    def cases():
        for T, N, K, H, queries, keys, itemsize in (
            (2048, 32, 8, 128, 512, 512, 2),
            (2048, 32, 8, 128, 256, 512, 2),
            (2048, 32, 8, 128, 512, 256, 2),
            (1024, 9, 3, 64, 128, 128, 4),
        ):
            rows = range(0, T, queries)
            asked = [s for row in rows for s in range(-(-(row + queries) // keys))]
            blocks = 1 + sum(a != b for a, b in itertools.pairwise(asked))
            expected = itemsize * (2 * T * N * H + 2 * blocks * keys * K * H)
            about = f"T={T}, N={N}, K={K}, H={H}, tiles of {queries} x {keys}, {itemsize} bytes"
            yield about, (T, N, K, H, queries, keys, itemsize), expected

    return run("flash_bytes", function, cases(), atol=0.5)


def tile_kind(function: Callable[..., str]) -> Verdict:
    """Check `f(row, column, queries, keys, window) -> "skip", "cut" or "whole"`.

    Of a tile of causal attention in which query t sees the `window` keys `t - window < s <= t`.
    """

    def cases():
        for queries, keys, window in ((4, 4, 6), (8, 4, 3), (2, 8, 16), (4, 4, 11), (4, 1, 5)):
            t, s = np.mgrid[:32, :32]
            seen = (s <= t) & (t - s < window)
            for row in range(32 // queries):
                for column in range(32 // keys):
                    rows = slice(row * queries, (row + 1) * queries)
                    tile = seen[rows, column * keys : (column + 1) * keys]
                    expected = "whole" if tile.all() else "cut" if tile.any() else "skip"
                    about = f"tile ({row}, {column}) of {queries} x {keys}, window {window}"
                    yield about, (row, column, queries, keys, window), expected

    return run("tile_kind", function, cases())
