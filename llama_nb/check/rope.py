"""Exercises of chapter 03."""

import math
from collections.abc import Callable

import numpy as np

from llama_nb import layers
from llama_nb.check.compare import Verdict, run


def unfinished_pairs(function: Callable[[int, float, int], int]) -> Verdict:
    """Check `f(H, theta, context)`: how many pairs make no full turn within the context."""

    def cases():
        for H, theta, context in (
            (64, 100_000.0, 8192),
            (128, 500_000.0, 8192),
            (128, 10_000.0, 4096),
            (16, 10_000.0, 100_000),
        ):
            turns = context * layers.rope_frequencies(H, theta) / (2 * math.pi)
            about = f"H={H}, theta={theta:,.0f}, context={context:,}"
            yield about, (H, theta, context), int((turns < 1).sum())

    return run("unfinished_pairs", function, cases())


def to_neighbours(function: Callable[[np.ndarray], np.ndarray]) -> Verdict:
    """Check `f(weight)`: weight (D, N, H), pairs (i, i + H/2) moved to (2 i, 2 i + 1)."""

    def cases():
        for D, N, H in ((3, 2, 4), (2, 1, 8), (6, 3, 64)):
            weight = np.random.default_rng(H).normal(size=(D, N, H)).astype(np.float32)
            expected = np.empty_like(weight)
            expected[..., 0::2] = weight[..., : H // 2]
            expected[..., 1::2] = weight[..., H // 2 :]
            yield f"D={D}, N={N}, H={H}", (weight,), expected

    return run("to_neighbours", function, cases())


def slower_theta(function: Callable[[int, float, float], float]) -> Verdict:
    """Check `f(H, theta, factor)`: the theta whose slowest pair is `factor` times slower."""

    def ratio(H: int, theta: float, factor: float) -> float | None:
        new = function(H, theta, factor)
        if new is None:
            return None
        slowest = layers.rope_frequencies(H, float(new))[-1]
        return float(layers.rope_frequencies(H, theta)[-1] / slowest)

    def cases():
        for H, theta, factor in ((64, 100_000.0, 8.0), (128, 500_000.0, 4.0), (8, 10_000.0, 2.0)):
            about = f"H={H}, theta={theta:,.0f}, factor={factor:g} (how much slower it became)"
            yield about, (H, theta, factor), factor

    return run("slower_theta", ratio, cases(), atol=1e-4)
