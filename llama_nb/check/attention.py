"""Exercises of chapter 04."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llama_nb.check.compare import Verdict, run


def window_mask(function: Callable[[int, int], Any]) -> Verdict:
    """Check `f(T, window) -> mask`, boolean (T, T): `window` keys back, itself included."""

    def cases():
        for T, window in ((6, 3), (5, 1), (4, 10)):
            expected = np.array([[0 <= t - s < window for s in range(T)] for t in range(T)])
            yield f"T={T}, window={window}", (T, window), expected

    return run("window_mask", function, cases())


def grouped_attention(function: Callable[[Any, Any, Any], Any]) -> Verdict:
    """Check `f(q, k, v)`: causal grouped-query attention of whole sequences.

    q has shape (B, T, N, H), k and v have (B, T, K, H); the result has the shape of q.
    """

    def cases():
        for B, T, N, K, H in ((1, 5, 4, 2, 8), (2, 7, 6, 3, 16), (1, 4, 3, 1, 4), (1, 3, 2, 2, 4)):
            rng = np.random.default_rng(N)
            q = rng.normal(size=(B, T, N, H)).astype(np.float32)
            k, v = rng.normal(size=(2, B, T, K, H)).astype(np.float32)
            expected = np.zeros(q.shape)
            for b, t, n in np.ndindex(B, T, N):
                head = n // (N // K)
                scores = k[b, : t + 1, head].astype(np.float64) @ q[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                expected[b, t, n] = weights / weights.sum() @ v[b, : t + 1, head]
            about = f"B={B}, T={T}, N={N}, K={K}, H={H}"
            yield about, (q, k, v), expected.tolist()  # a list: any float dtype will do

    # An accelerator rounds the factors of float32 products; wrong formulas are far further off.
    return run("grouped_attention", function, cases(), atol=2e-2)


def merge_softmax(function: Callable[..., Any]) -> Verdict:
    """Check `f(m1, z1, o1, m2, z2, o2) -> o`: attention over two sets of keys from each one's.

    m is the largest score, z the sum of `exp(score - m)`, o the output of shape (H,).
    """

    def part(scores, values):
        weights = np.exp(scores - scores.max())
        return scores.max(), weights.sum(), weights @ values / weights.sum()

    def cases():
        for S, H, shift, seed in ((6, 4, 0.0, 0), (9, 8, 3.0, 1), (5, 2, 800.0, 2)):
            rng = np.random.default_rng(seed)
            scores, values = rng.normal(size=S) + shift, rng.normal(size=(S, H))
            halves = *part(scores[:2], values[:2]), *part(scores[2:], values[2:])
            about = f"S={S} cut after 2, scores near {shift:g}"
            yield about, halves, part(scores, values)[2].tolist()

    return run("merge_softmax", function, cases())
