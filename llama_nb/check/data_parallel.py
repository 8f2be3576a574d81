"""Exercises of chapter 16."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb.check.compare import Verdict, run


def pad_rows(function: Callable[[np.ndarray, int], tuple]) -> Verdict:
    """Check `f(tokens (B, T + 1), devices) -> (tokens, mask)` with rows that devices divide."""

    def cases():
        rng = np.random.default_rng(0)
        for B, T, devices in ((20, 6, 8), (8, 3, 4), (1, 5, 3)):
            tokens = rng.integers(1, 100, (B, T + 1)).astype(np.int32)
            rows = B + -B % devices
            filled, mask = np.zeros((rows, T + 1), np.int32), np.zeros((rows, T), np.float32)
            filled[:B], mask[:B] = tokens, 1
            about = f"{B} rows of {T + 1} tokens on {devices} devices"
            yield about, (tokens, devices), (filled, mask)

    return run("pad_rows", function, cases())


def token_mean(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Verdict:
    """Check `f(losses (B, T), mask (B, T)) -> mean` over all devices of the axis "data"."""

    def cases():
        rng = np.random.default_rng(0)
        for counts in ((6, 6, 6, 6), (1, 9, 30, 12), (5, 0)):
            losses = rng.uniform(1, 6, (len(counts), 3, 10)).astype(np.float32)
            mask = (np.arange(30) < np.array(counts)[:, None]).reshape(losses.shape)
            mask = mask.astype(np.float32)
            mean = (losses * mask).sum() / mask.sum()
            about = f"{len(counts)} devices with {', '.join(map(str, counts))} tokens"
            yield about, (losses, mask), np.full(len(counts), mean, np.float32)

    def on_devices(losses, mask):
        got = jax.vmap(lambda *own: (function(*own),), axis_name="data")(losses, mask)
        return got[0]

    return run("token_mean", on_devices, cases())


def accumulate(function: Callable[[Callable, Any, list], Any]) -> Verdict:
    """Check `f(gradient, params, parts) -> pytree`, the gradient of the mean over all tokens.

    `gradient(params, part)` gives the gradient of the sum of a part's losses and its token count.
    """

    def loss(params, part):
        x, y, mask = part
        return (mask * (x @ params["w"] + params["b"] - y) ** 2).sum()

    def gradient(params, part):
        return jax.grad(loss)(params, part), part[2].sum()

    def cases():
        rng = np.random.default_rng(0)
        params = {"w": jnp.float32(rng.normal(size=4)), "b": jnp.float32(0.5)}
        for counts in ((8, 8), (8, 1, 3), (5,)):
            parts = []
            for count in counts:
                x, y = rng.normal(size=(8, 4)), rng.normal(size=8)
                parts.append(tuple(map(jnp.float32, (x, y, np.arange(8) < count))))
            together = tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))
            grads, tokens = gradient(params, together)
            expected = tuple(leaf / tokens for leaf in jax.tree.leaves(grads))
            about = f"parts of {', '.join(map(str, counts))} tokens"
            yield about, (gradient, params, parts), expected

    def leaves(*arguments):
        got = function(*arguments)
        return None if got is None else tuple(jax.tree.leaves(got))

    return run("accumulate", leaves, cases())


def exposed_seconds(function: Callable[[int, int, int, float, float, int], float]) -> Verdict:
    """Check `f(params, tokens, chips, flops, bandwidth, itemsize) -> seconds` not hidden."""

    def cases():
        for params, tokens, chips, flops, bandwidth, itemsize in (
            (8_000_000_000, 65_536, 256, 197e12, 90e9, 2),
            (1_000_000_000, 8192, 8, 989.5e12, 450e9, 4),
            (8_000_000_000, 4_000_000, 256, 197e12, 90e9, 2),  # hidden
            (8_000_000_000, 1024, 1, 197e12, 90e9, 2),  # nothing to send
        ):
            sending = 2 * (chips - 1) / chips * params * itemsize / bandwidth
            backward = 4 * params * tokens / chips / flops
            about = f"{params / 1e9:.0f}B parameters and {tokens:,} tokens on {chips} chips"
            arguments = (params, tokens, chips, flops, bandwidth, itemsize)
            yield about, arguments, max(0.0, sending - backward)

    return run("exposed_seconds", function, cases())
