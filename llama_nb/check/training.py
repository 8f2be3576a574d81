"""Exercises of chapter 13."""

import math
from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def weighted_loss(function: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Verdict:
    """Check `f(logits (B, T, V), targets (B, T), weights (B, T)) -> mean cross-entropy`.

    Nats per target, by weight; 0 where nothing counts.
    """

    def cases():
        rng = np.random.default_rng(0)
        for about, scale, offset, counted in (
            ("all targets", 1.0, 0.0, 1.0),
            ("half of the targets", 3.0, 0.0, 0.5),
            ("logits near 1,000", 1.0, 1000.0, 0.7),
            ("no target that counts", 1.0, 0.0, 0.0),
        ):
            logits = (scale * rng.normal(size=(2, 12, 7)) + offset).astype(np.float32)
            targets = rng.integers(0, 7, (2, 12))
            weights = (rng.random((2, 12)) < counted).astype(np.float32)
            wide = logits.astype(np.float64)
            top = wide.max(-1, keepdims=True)
            norm = np.log(np.exp(wide - top).sum(-1)) + top[..., 0]
            chosen = np.take_along_axis(wide, targets[..., None], -1)[..., 0]
            expected = float(((norm - chosen) * weights).sum() / max(weights.sum(), 1))
            yield about, (logits, targets, weights), expected

    # Near 1,000 a float32 has steps of 6e-5.
    return run("weighted_loss", function, cases(), atol=2e-4)


def clip_together(function: Callable[[list[np.ndarray], float], list]) -> Verdict:
    """Check `f(gradients, limit) -> list of arrays`, scaled by one factor where they are long."""

    def cases():
        rng = np.random.default_rng(0)
        for about, scale, limit in (
            ("a long gradient", 30.0, 1.0),
            ("a short gradient", 1e-3, 1.0),
            ("one just below a limit of 10", 1.4, 10.0),
            ("no gradient at all", 0.0, 1.0),
        ):
            shapes = ((3, 4), (5,), (2, 3, 4))
            gradients = [(scale * rng.normal(size=s)).astype(np.float32) for s in shapes]
            length = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))
            factor = limit / length if length > limit else 1.0
            yield about, (gradients, limit), tuple(factor * g.astype(np.float64) for g in gradients)

    def as_tuple(gradients, limit):
        got = function(gradients, limit)
        return tuple(np.asarray(g, np.float64) for g in got) if isinstance(got, list) else got

    return run("clip_together", as_tuple, cases())


def warmup_linear(function: Callable[[int, float, int, int], float]) -> Verdict:
    """Check `f(step, peak, warmup, steps) -> rate`: up in a line from 0, then down in one to 0."""

    def cases():
        for peak, warmup, steps in ((1.0, 10, 100), (2.0, 1, 50), (0.5, 0, 40)):
            for step in (0, 1, warmup // 2, warmup, (warmup + steps) // 2, steps - 1, steps):
                if step < warmup:
                    expected = peak * step / warmup
                else:
                    expected = peak * (steps - step) / (steps - warmup)
                about = f"step {step} of {steps}, peak {peak}, warmup {warmup}"
                yield about, (step, peak, warmup, steps), expected

    return run("warmup_linear", function, cases(), atol=1e-6)
