"""Exercises of chapter 17."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.check.meshes import by_hand
from llama_nb.config import LlamaConfig


def talk_bytes(function: Callable[[LlamaConfig, int, int, int], float]) -> Verdict:
    """Check `f(config, tokens, n, itemsize) -> bytes` that each of n devices sends in one step.

    Two ring all-reduces of the residual stream a layer, and one for the embedding.
    """

    def cases():
        for name, tokens, n, itemsize in (
            ("llama3.1-70b", 1, 16, 2),
            ("llama3.1-8b", 2048, 8, 2),
            ("llama3.1-8b", 32, 4, 4),
            ("tiny", 5, 2, 4),
            ("tiny", 5, 1, 4),
        ):
            config = presets.get(name)
            array = tokens * config.embed_dim * itemsize
            expected = (2 * config.num_layers + 1) * 2 * (n - 1) / n * array
            about = f"{name}, {tokens} tokens, {n} devices, {itemsize} bytes a number"
            yield about, (config, tokens, n, itemsize), expected

    return run("talk_bytes", function, cases())


def split_argmax(function: Callable[[jax.Array], jax.Array]) -> Verdict:
    """Check `f(logits (B, V/n)) -> tokens (B,)` in `shard_map`, the same on every device.

    The vocabulary is split over `model`, the smallest of equal tokens wins, and devices may talk by
    `pmax` and `pmin` only.
    """
    n = math.gcd(4, jax.device_count())

    def cases():
        for B, V, what in ((3, 32, "random"), (5, 8, "random"), (2, 16, "tied")):
            logits = np.random.default_rng(V).normal(size=(B, V)).astype(np.float32)
            if what == "tied":
                logits[:, [3, 6, 13]] = 5
            yield f"{what} logits of shape ({B}, {V}) on {n} devices", (logits,), logits.argmax(-1)

    def everywhere(logits):
        found = _on_all(function, n, P(None, "model"), {"pmax", "pmin"}, (logits,))
        return None if found is None else found.astype(int)

    return run("split_argmax", everywhere, cases())


def split_loss(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Verdict:
    """Check `f(logits (B, V/n), targets (B,)) -> loss (B,)` in `shard_map`, the same everywhere.

    The cross-entropy, -log softmax at the target; devices may talk by `pmax` and `psum` only.
    """
    n = math.gcd(4, jax.device_count())

    def cases():
        for B, V, scale in ((3, 32, 1), (5, 8, 3), (4, 16, 300)):
            rng = np.random.default_rng(V)
            logits = (scale * rng.normal(size=(B, V))).astype(np.float32)
            targets = rng.integers(0, V, B).astype(np.int32)
            shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
            log_sum = np.log(np.exp(shifted).sum(-1))
            expected = (log_sum - shifted[np.arange(B), targets]).tolist()
            about = f"logits of shape ({B}, {V}) up to {np.abs(logits).max():.0f} on {n} devices"
            yield about, (logits, targets), expected

    def everywhere(logits, targets):
        ins = (P(None, "model"), P())
        return _on_all(function, n, ins, {"pmax", "psum"}, (logits, targets))

    return run("split_loss", everywhere, cases(), atol=1e-3)


def _on_all(function: Callable, n: int, ins: Any, allowed: set[str], arguments: tuple) -> Any:
    """Return the result (B,) that all n devices agree on, None where there is none.

    Raises
    ------
    ValueError
        When devices have different results, or one of another shape.
    """
    B = len(arguments[0])
    shapes: list[tuple[int, ...]] = []

    def noted(*parts):
        result = function(*parts)
        if result is not None:
            shapes.append(result.shape)
        return result

    found = by_hand(noted, n, ins, P("model"), allowed, arguments)
    if found is None:
        return None
    if shapes[0] != (B,):
        raise ValueError(f"each device returned shape {shapes[0]}; ({B},) is expected.")
    each = found.reshape(n, B)
    if not np.allclose(each, each[0], atol=1e-4, equal_nan=True):
        raise ValueError("devices returned different results; all must know the whole answer.")
    return each[0]
