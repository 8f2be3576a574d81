"""Decode attention on a GPU: its share of the memory's bandwidth, beside what else JAX offers.

A stack of layers, each with a cache of its own so that no cache is read from the L2, attends with
one query a sequence; Llama-8B's heads. Each answer is first compared with float32 arithmetic, and
what is wrong is not timed. Bytes are those of the filled slots, so reading empty ones costs share.

    python benchmarks/decode_attention.py [--save | --interpret]
"""

import argparse
import functools
import itertools
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np

from llama_nb import devices, kernels
from llama_nb.kernels import decode_gpu

N, K, H = 32, 8, 128
BATCHES, CONTEXTS, FILLS = (1, 8, 64), (2048, 8192, 32768), ("full", "ragged")
STACK = 2**29  # bytes that a run reads at least, several times an L2
LAYERS, ROUNDS = 32, 7  # at most, and how often all take turns
WORST = {"bfloat16": 0.02, "int8": 0.02}  # error, of the largest number in the answer


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--save", action="store_true", help="write results/decode_attention.json")
    group.add_argument("--interpret", action="store_true", help="a tiny case, interpreted on CPU")
    options = parser.parse_args()
    if not devices.has_accelerator():
        jax.config.update("jax_platforms", "cpu")
    on_gpu = jax.default_backend() in ("gpu", "cuda")
    if not on_gpu and not options.interpret:
        print("This benchmark needs an NVIDIA GPU; --interpret tries its paths on a CPU.")
        return
    copy = copy_bandwidth(2**16 if options.interpret else 2**30)
    print(f"{jax.devices()[0].device_kind}: a copy moves {copy / 1e9:,.0f} GB/s")
    print(
        f"{'batch':>5} {'context':>7} {'filled':>6}  {'':14} {'us':>9} {'of copy':>7} {'error':>8}"
    )
    cells, cases = [], itertools.product(BATCHES, CONTEXTS, FILLS)
    for batch, context, fill in [(2, 256, "ragged")] if options.interpret else cases:
        found = cell(batch, context, fill, copy, options.interpret)
        cells.append({"batch": batch, "context": context, "filled": fill, "found": found})
        for name, row in found.items():
            print(f"{batch:5} {context:7} {fill:>6}  {name:14} {line(row)}", flush=True)
    if options.save:
        device = {"device": jax.devices()[0].device_kind, "copy_gb_s": round(copy / 1e9)}
        shape = {"query_heads": N, "kv_heads": K, "head_dim": H}
        print("kept in", machine.save("decode_attention", {**device, **shape, "cells": cells}))


def line(row: dict[str, Any]) -> str:
    if "reason" in row:
        return row["reason"]
    return f"{row['us']:9.1f} {row['share']:7.0%} {row['error']:8.1e}"


def copy_bandwidth(size: int) -> float:
    """Return bytes a second, read and written, of adding 1 to an array of `size` bytes."""
    x = jnp.zeros((size,), jnp.int8)
    step = jax.jit(lambda x: x + 1)
    return 2 * size / statistics.median(seconds(step, x) for _ in range(ROUNDS + 1))


def seconds(step: Any, *arguments: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    return time.perf_counter() - begin


def cell(batch: int, context: int, fill: str, copy: float, interpret: bool) -> dict[str, dict]:
    """Return what each peer did: time, share of `copy` and error, or the reason why not."""
    shape = (batch, K, context, H)
    lengths = np.full(batch, context)
    if fill == "ragged":  # a quarter on average, the longest four times the shortest
        lengths = np.linspace(0.1, 0.4, batch) if batch > 1 else np.array([0.25])
        lengths = np.random.default_rng(0).permutation((lengths * context).astype(np.int64))
    # Both dtypes, cuDNN's own layout, and room to compute in.
    layers = 1 if interpret else min(LAYERS, max(1, STACK // (4 * math.prod(shape))))
    need = 12 * layers * math.prod(shape)
    stats = jax.devices()[0].memory_stats() or {}
    if not interpret and need > (room := stats.get("bytes_limit", 0) - stats["bytes_in_use"]):
        return {"all": {"reason": f"skipped: {need / 1e9:.0f} GB, and {room / 1e9:.0f} are free"}}
    numbers = (jnp.zeros(batch, jnp.int32), jnp.asarray(lengths, jnp.int32))
    q = jax.random.normal(jax.random.key(1), (batch, N, H), jnp.bfloat16)
    runs, found = {}, {}
    for dtype in ("bfloat16", "int8"):
        stack = [kept(layer, shape, dtype) for layer in range(layers)]
        want = reference(q, *stack[0], *numbers)
        for name, (attend, prepare) in peers(dtype, interpret).items():
            try:
                caches = [prepare(*cache) for cache in stack]
                step = jax.jit(functools.partial(through, attend))
                got = jax.jit(attend)(q, *caches[0], *numbers)
                error = float(jnp.abs(got - want).max() / jnp.abs(want).max())
                if not error <= WORST[dtype]:
                    found[name] = {"reason": f"wrong: an error of {error:.1e}"}
                    continue
                jax.block_until_ready(step(q, caches, *numbers))
            except Exception as reason:  # A peer that can't is a row, not an end.
                text = (str(reason).strip() or type(reason).__name__).splitlines()[0]
                found[name] = {"reason": f"not run: {text[:70]}"}
                continue
            slot = 2 * K * (2 * H if dtype == "bfloat16" else H + 4)
            runs[name] = (step, caches, int(lengths.sum()) * slot)
            found[name] = {"error": error}
    times = {name: [] for name in runs}
    for _ in range(1 if interpret else ROUNDS):
        for name, (step, caches, _) in runs.items():
            times[name].append(seconds(step, q, caches, *numbers) / layers)
    for name, (_, _, size) in runs.items():
        best = statistics.median(times[name])
        found[name].update(us=round(best * 1e6, 2), share=round(size / best / copy, 4))
    return found


@functools.partial(jax.jit, static_argnums=(1, 2))
def kept(seed: int, shape: tuple[int, ...], dtype: str) -> tuple[jax.Array, ...]:
    """Return random keys and values, and with int8 their scales."""
    raw = [jax.random.bits(jax.random.key(2 * seed + i), shape, jnp.uint8) for i in range(2)]
    raw = [jax.lax.bitcast_convert_type(x, jnp.int8) for x in raw]
    if dtype == "int8":
        scales = [jax.random.uniform(jax.random.key(i), shape[:-1]) / 64 + 1 / 256 for i in (5, 6)]
        return *raw, *scales
    return tuple(x.astype(dtype) / 64 for x in raw)


@jax.jit
def reference(q: jax.Array, keys: jax.Array, values: jax.Array, *rest: jax.Array) -> jax.Array:
    """Return attention by the formula, in float32, a sequence at a time; shape (B, N, H)."""
    *scales, starts, lengths = rest

    def one(sequence):
        q, keys, values, scales, start, length = sequence
        keys, values = keys.astype(jnp.float32), values.astype(jnp.float32)
        if scales:
            keys, values = keys * scales[0][..., None], values * scales[1][..., None]
        rows = q.astype(jnp.float32).reshape(K, N // K, H)
        scores = jnp.einsum("kgh,ksh->kgs", rows, keys, precision="highest") * H**-0.5
        slots = jnp.arange(keys.shape[1])
        weights = jax.nn.softmax(scores, where=(slots >= start) & (slots < length))
        return jnp.einsum("kgs,ksh->kgh", weights, values, precision="highest").reshape(N, H)

    return jax.lax.map(one, (q, keys, values, tuple(scales), starts, lengths))


def through(attend: Any, q: jax.Array, caches: list, *numbers: jax.Array) -> jax.Array:
    """Attend layer by layer, each with the answer of the one before."""
    for cache in caches:
        q = attend(q, *cache, *numbers).astype(q.dtype)
    return q


def peers(dtype: str, interpret: bool) -> dict[str, tuple[Any, Any]]:
    """Return, by name, who attends (B, N, H) to a cache, and how that likes its cache."""

    def ours(q, keys, values, *rest):
        *scales, starts, lengths = rest
        if not interpret and (reason := decode_gpu.available(keys)):
            raise RuntimeError(reason)
        q4 = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype).reshape(-1, K, N // K, H)
        out, _ = decode_gpu.decode_attention(
            *(q4, keys, values, starts, lengths, *scales),
            splits=2 if interpret else None,
            interpret=interpret,
        )
        return out.reshape(q.shape)

    def xla(q, keys, values, *rest):
        *scales, starts, lengths = rest
        scales = dict(zip(("key_scales", "value_scales"), scales, strict=False))
        return kernels.decode_attention(
            q, keys, values, starts, lengths, **scales, implementation="xla"
        )

    def cudnn(q, keys, values, starts, lengths):
        del starts  # They are 0.
        out = jax.nn.dot_product_attention(
            q[:, None], keys, values, key_value_seq_lengths=lengths, implementation="cudnn"
        )
        return out[:, 0]

    def jax_pallas(q, keys, values, starts, lengths):
        from jax.experimental.pallas.ops.gpu import decode_attention as theirs

        # It transposes back what is transposed here. Without residuals 0.7.2 drops sequences.
        keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
        return theirs.gqa(
            *(q, keys, values, starts, lengths), return_residuals=True, interpret=interpret
        )[0]

    def as_is(*cache):
        return cache

    def heads_inside(*cache):  # (B, S, K, H), a copy
        return tuple(jnp.copy(x.swapaxes(1, 2)) for x in cache)

    if dtype == "int8":
        return {"ours int8": (ours, as_is), "XLA int8": (xla, as_is)}
    return {
        "ours": (ours, as_is),
        "XLA": (xla, as_is),
        "cuDNN": (cudnn, heads_inside),
        "JAX's Pallas": (jax_pallas, as_is),
    }


if __name__ == "__main__":
    main()
