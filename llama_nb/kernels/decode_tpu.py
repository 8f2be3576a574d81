"""Ragged decode attention for TPU: one query per sequence, and only the filled blocks of its cache.

The grid has a row per sequence and a column per block of slots. Which block a step reads is looked
up in scalars that are there before the kernel starts, so that the pipeline fetches no block that
holds nothing: a step without work asks for the block that is needed next.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama_nb.kernels.ragged import NOTHING

_LANES = 128


def decode_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    scales: tuple[jax.Array, ...],
    *,
    scale: float,
    block: int,
    own: tuple[jax.Array, ...] = (),
    dtype: Any = jnp.float32,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Attend from one query per sequence to the slots from `starts` up to `lengths`.

    Parameters
    ----------
    q
        Shape (B, K, G, H).
    keys, values
        Shape (B, K, S, H); float, or int8 with `scales`.
    starts, lengths
        Shape (B,), int32, between 0 and S.
    scales
        Of int8 keys and values: two float32 arrays of shape (B, K, S). Otherwise none.
    scale
        What multiplies the scores.
    block
        Slots per step: S, or a multiple of 128.
    own
        Key and value of the query's own position, float32 of shape (B, K, 1, H), if they are not in
        the cache yet.
    dtype
        Of the outputs.
    interpret
        As in `pallas_call`.

    Returns
    -------
    tuple
        Outputs (B, K, G, H), and the logarithms of the softmax's denominators (B, K, G), float32:
        0 and `NOTHING` where there is nothing to attend to.

    References
    ----------
    Dao et al. 2023 for decoding in parts, Milakov and Gimelshein 2018 for the running softmax.
    """
    B, K, G, H = q.shape
    # The TPU keeps arrays whose last axis is narrower than a register with slots along the lanes.
    # Seen that way they are read as they lie.
    slots_last = H % _LANES != 0
    if slots_last:
        keys, values = keys.swapaxes(2, 3), values.swapaxes(2, 3)
    scalars = plan(starts, lengths, block)

    at = functools.partial(block_at, block=block)

    def by_slots(*scalars):
        row, here = at(*scalars)
        return (row, 0, 0, here) if slots_last else (row, 0, here, 0)

    def by_scale(*scalars):
        row, here = at(*scalars)
        return row, 0, here

    def by_row(b, *_):
        return b, 0, 0, 0

    tile = (1, K, H, block) if slots_last else (1, K, block, H)
    filled = jnp.where(lengths > starts, (lengths - 1) // block - starts // block + 1, 1)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(B, jnp.max(filled)),
        in_specs=[
            pl.BlockSpec((1, K, G, H), by_row),
            *[pl.BlockSpec(tile, by_slots)] * 2,
            *[pl.BlockSpec((1, K, block), by_scale)] * len(scales),
            *[pl.BlockSpec((1, K, 1, H), by_row)] * len(own),
        ],
        out_specs=[pl.BlockSpec((1, K, G, H), by_row), pl.BlockSpec((1, K, G, 1), by_row)],
        scratch_shapes=[
            pltpu.VMEM((K, G, H), jnp.float32),
            pltpu.VMEM((K, G, 1), jnp.float32),
            pltpu.VMEM((K, G, 1), jnp.float32),
        ],
    )
    out, lse = pl.pallas_call(
        functools.partial(
            _kernel, block=block, scale=scale, slots_last=slots_last, quantized=bool(scales)
        ),
        grid_spec=grid,
        out_shape=[
            jax.ShapeDtypeStruct((B, K, G, H), dtype),
            jax.ShapeDtypeStruct((B, K, G, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
    )(*scalars, q, keys, values, *scales, *own)
    return out, lse[..., 0]


def block_at(
    b: Any,
    step: Any,
    starts: Any,
    lengths: Any,
    next_row: Any,
    next_block: Any,
    *,
    block: int,
) -> tuple[Any, Any]:
    """Return the row and the block that a step of the grid reads, from `plan`'s scalars."""
    here = starts[b] // block + step
    filled = (here * block < lengths[b]) & (starts[b] < lengths[b])
    return jnp.where(filled, b, next_row[b]), jnp.where(filled, here, next_block[b])


def plan(starts: jax.Array, lengths: jax.Array, block: int) -> tuple[jax.Array, ...]:
    """Return the kernel's scalars: starts, lengths, and what to fetch once a row has its blocks.

    That is the first block of the next row that has any, so that it arrives while the steps in
    between pass; and after the last such row, what was fetched last.
    """
    rows = jnp.arange(len(starts))
    some = lengths > starts
    last_row = jnp.max(jnp.where(some, rows, 0))
    following = jnp.where(some[None] & (rows[None] > rows[:, None]), rows[None], len(starts))
    following = jnp.min(following, axis=1)
    none_left = following == len(starts)
    next_row = jnp.where(none_left, last_row, following)
    first, last = starts[next_row] // block, jnp.maximum(lengths[next_row] - 1, 0) // block
    next_block = jnp.where(none_left, last, first)
    return tuple(x.astype(jnp.int32) for x in (starts, lengths, next_row, next_block))


def _kernel(
    starts: jax.Array,
    lengths: jax.Array,
    next_row: jax.Array,
    next_block: jax.Array,
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *refs: jax.Array,
    block: int,
    scale: float,
    slots_last: bool,
    quantized: bool,
) -> None:
    """Do one step of the grid: scalars, inputs, outputs and scratch, in that order."""
    *inputs, out, lse, mixed, largest, total = refs
    scales, own = (inputs[:2], inputs[2:]) if quantized else ((), inputs)
    b, step = pl.program_id(0), pl.program_id(1)
    start, length = starts[b], lengths[b]
    first = (start // block + step) * block

    @pl.when(step == 0)
    def _():
        if own:
            products = q[0].astype(jnp.float32) * own[0][0]
            largest[...] = jnp.sum(products, axis=-1, keepdims=True) * scale
            total[...] = jnp.ones_like(total)
            mixed[...] = jnp.broadcast_to(own[1][0], mixed.shape)
        else:
            largest[...] = jnp.full_like(largest, NOTHING)
            total[...] = jnp.zeros_like(total)
            mixed[...] = jnp.zeros_like(mixed)

    def add(masked: bool) -> None:
        for head in range(q.shape[1]):
            k, v = keys[0, head], values[0, head]
            if scales:
                k, v = k.astype(q.dtype), v.astype(q.dtype)
            if not slots_last:
                k = k.T
            scores = _dot(q[0, head], k) * scale  # (G, block)
            if scales:
                scores = scores * scales[0][0, head : head + 1]
            if masked:
                slots = first + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
                seen = (slots >= start) & (slots < length)
                scores = jnp.where(seen, scores, NOTHING)
            before = largest[head]
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            weights, shrink = jnp.exp(scores - now), jnp.exp(before - now)
            largest[head] = now
            total[head] = total[head] * shrink + jnp.sum(weights, axis=1, keepdims=True)
            if scales:
                weights = weights * scales[1][0, head : head + 1]
                if masked:  # 0 times what lies in an unused slot may be NaN.
                    weights = jnp.where(seen, weights, 0)
            elif masked:
                slots = first + jax.lax.broadcasted_iota(jnp.int32, v.shape, int(slots_last))
                v = jnp.where((slots >= start) & (slots < length), v, 0)
            if slots_last:
                v = v.T
            mixed[head] = mixed[head] * shrink + _dot(weights.astype(v.dtype), v)

    # Most blocks are filled to the brim, and need no mask.
    some = (first < length) & (start < length)
    whole = (first >= start) & (first + block <= length)
    pl.when(some & whole)(lambda: add(masked=False))
    pl.when(some & jnp.logical_not(whole))(lambda: add(masked=True))

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        empty = total[...] == 0
        sums = jnp.where(empty, 1, total[...])
        out[0] = (mixed[...] / sums).astype(out.dtype)
        lse[0] = jnp.where(empty, NOTHING, largest[...] + jnp.log(sums))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=exact, preferred_element_type=jnp.float32)
