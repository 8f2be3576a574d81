"""Exercises of chapter 02."""

from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def fold_gain(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Check `f(gain, weight)`: weight (D, N, H) with the norm's gains (D,) folded in."""

    def cases():
        for D, N, H, seed in ((6, 2, 4, 0), (4, 4, 4, 1), (8, 1, 8, 2)):
            rng = np.random.default_rng(seed)
            gain = rng.uniform(0.5, 2, D).astype(np.float32)
            weight = rng.normal(size=(D, N, H)).astype(np.float32)
            expected = np.einsum("d,dnh->dnh", gain, weight)
            yield f"D={D}, N={N}, H={H}", (gain, weight), expected

    return run("fold_gain", function, cases())


def rms_norm_of_parts(function: Callable[[list[np.ndarray], float], tuple]) -> Verdict:
    """Check `f(parts, eps)`: parts (B, T, D_i) of a vector, normalized as the whole is."""

    def cases():
        for widths, eps, seed in (((8,), 1e-5, 0), ((4, 4), 1e-5, 1), ((2, 3, 7), 1e-1, 2)):
            rng = np.random.default_rng(seed)
            whole = rng.normal(size=(2, 3, sum(widths))) * 10.0 ** rng.integers(-1, 2, (2, 3, 1))
            whole = whole.astype(np.float32)
            exact = whole.astype(np.float64)
            exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + eps)
            cuts = np.cumsum(widths)[:-1]
            expected = tuple(np.split(exact.astype(np.float32), cuts, axis=-1))
            yield f"parts of widths {widths}", (np.split(whole, cuts, axis=-1), eps), expected

    return run("rms_norm_of_parts", function, cases())


def centre_outputs(function: Callable[[np.ndarray], np.ndarray]) -> Verdict:
    """Check `f(weight)`: the weight (F, D) whose outputs are the old ones without their mean."""

    def cases():
        for F, D, seed in ((3, 5, 0), (4, 4, 1)):
            weight = np.random.default_rng(seed).normal(1, 1, (F, D)).astype(np.float32)
            expected = weight - weight.astype(np.float64).mean(1, keepdims=True)
            yield f"F={F}, D={D}", (weight,), expected.astype(np.float32)

    return run("centre_outputs", function, cases())
