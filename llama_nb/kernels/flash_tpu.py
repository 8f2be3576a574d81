"""Flash attention for TPUs: attention of whole prompts whose score matrix never leaves the chip."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama_nb.kernels.choice import own_chip

LANES = 128
# Keys of a block: enough work for the matrix units to hide what a step of the grid costs, a
# fraction of a microsecond; more on chips that are several times as fast.
_KEYS = {"TPU v6 lite": 1024, "TPU7x": 1024}
_QUERIES, _FEWEST_QUERIES, _FEWER_KEYS = 512, 16, 512
# What blocks may fill of VMEM. A TPU gives a kernel 16 MiB unasked, which is all that v4 has, and
# 12 for blocks leave the compiler enough; others have 64 or 128 and give 32 to those who ask.
_ROOM, _V4_ROOM, _ROOM_UNASKED, _ASKED = (MiB * 2**20 for MiB in (24, 15, 12, 32))
_LOWEST = float(jnp.finfo(jnp.float32).min)


def heads_per_block(num_kv_heads: int, head_dim: int) -> int:
    """Return how many KV heads one block holds: a block is whole lanes wide, or all there is."""
    for heads in range(1, num_kv_heads):
        if num_kv_heads % heads == 0 and heads * head_dim % LANES == 0:
            return heads
    return num_kv_heads


def block_sizes(
    T: int, heads: int, head_dim: int, itemsize: int, chip: str | None = None
) -> tuple[int, int]:
    """Return how many queries and keys the kernel should take at once.

    As many queries as fit: a block of keys is read once for all of them. The scores of all heads
    count, for the compiler works on several at once.

    Parameters
    ----------
    T
        Positions.
    heads
        Query heads of a block.
    head_dim
        Features of a head.
    itemsize
        Bytes per number.
    chip
        As JAX names it; by default this process's TPU, else one of v5e's speed and memory.
    """
    chip = chip or own_chip()
    keys, room = _KEYS.get(chip, _FEWER_KEYS), _V4_ROOM if chip == "TPU v4" else _ROOM
    queries, each = _QUERIES, _bytes_per_query(keys, heads, head_dim, itemsize)
    while queries > _FEWEST_QUERIES and queries * each > room:
        queries //= 2
    whole = pl.cdiv(T, 16) * 16  # A tile of bfloat16 is 16 rows.
    return min(queries, whole), min(keys, whole)


def _bytes_per_query(keys: int, heads: int, head_dim: int, itemsize: int) -> int:
    """Return the VMEM for a query: twice with its output, its sums, and its scores of all keys."""
    return heads * (head_dim * (4 * itemsize + 4) + 2 * itemsize * keys)


def visits(T: int, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which tiles of the (T, T) scores are computed: row and column of each, in order.

    Those that touch the diagonal or lie below it, row by row.
    """
    starts = np.arange(0, T, queries)
    columns = -(-np.minimum(starts + queries, T) // keys)  # How many of each row.
    rows = np.repeat(np.arange(len(starts)), columns)
    return rows.astype(np.int32), np.concatenate([np.arange(n) for n in columns]).astype(np.int32)


def query_block(row: Any, start: Any, length: Any, queries: int) -> Any:
    """Return which block of queries a tile needs: its row, or the nearest that holds text."""
    return jnp.clip(row, _div(start, queries), _div(jnp.maximum(length - 1, start), queries))


def key_block(row: Any, column: Any, start: Any, length: Any, queries: int, keys: int) -> Any:
    """Return which block of keys a tile needs: its column, or the nearest its queries look at.

    A block that is asked for twice in a row is not read again, so that tiles without work read
    nothing; rows after the text stay where the text ended.
    """
    end = jnp.minimum((row + 1) * queries, length)
    first, last = _div(start, keys), _div(jnp.maximum(end - 1, start), keys)
    return jnp.clip(jnp.where(row * queries < length, column, last), first, last)


def _div(number: Any, block: int) -> Any:
    # Of what isn't negative. `//` asks for signs, and lowering those for the TPU there is.
    return jax.lax.div(number, jnp.int32(block))


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    interpret: Any = False,
    block: tuple[int, int] | None = None,
    chip: str | None = None,
) -> jax.Array:
    """Causal attention of prompts to themselves, as one kernel; see `flash.flash_attention`.

    Heads stay where the projections put them, side by side in the last axis: a block is a range of
    columns of (B, T, N H), and nothing is transposed.

    References
    ----------
    Dao 2023 (FlashAttention-2), algorithm 1.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G, P = N // K, heads_per_block(K, H)
    width = P * G * H
    chip = chip or own_chip()
    queries, keys = block or block_sizes(T, P * G, H, q.dtype.itemsize, chip)
    filled = queries * _bytes_per_query(keys, P * G, H, q.dtype.itemsize)
    rows, columns = visits(T, queries, keys)
    # The maps point into the arrays whatever the lengths, and no text is a length of 0.
    lengths = jnp.where(lengths > starts, jnp.minimum(lengths, T), 0).astype(jnp.int32)
    starts = jnp.clip(starts, 0, T - 1).astype(jnp.int32)

    def query_map(b, h, step, rows, columns, starts, lengths):
        return b, query_block(rows[step], starts[b], lengths[b], queries), h

    def key_map(b, h, step, rows, columns, starts, lengths):
        i, j = rows[step], columns[step]
        return b, key_block(i, j, starts[b], lengths[b], queries, keys), h

    def out_map(b, h, step, rows, columns, starts, lengths):
        return b, rows[step], h  # All of the output is written, text or not.

    out = pl.pallas_call(
        functools.partial(_kernel, T=T, G=G, H=H),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, K // P, len(rows)),
            in_specs=[
                pl.BlockSpec((1, queries, width), query_map),
                pl.BlockSpec((1, keys, P * H), key_map),
                pl.BlockSpec((1, keys, P * H), key_map),
            ],
            out_specs=pl.BlockSpec((1, queries, width), out_map),
            scratch_shapes=[
                pltpu.VMEM((queries, P * G), jnp.float32),
                pltpu.VMEM((queries, P * G), jnp.float32),
                pltpu.VMEM((queries, width), jnp.float32),
            ],
        ),
        # Of the kind of `q`: inside `jax.shard_map` the result varies along the same mesh axes.
        out_shape=jax.eval_shape(lambda: q.reshape(B, T, N * H)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=None if filled <= _ROOM_UNASKED or chip == "TPU v4" else _ASKED,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * N * T * T * H,
            bytes_accessed=2 * q.nbytes + 2 * k.nbytes,
            transcendentals=B * N * T * T // 2,
        ),
        interpret=interpret,
        name="flash_attention",
    )(rows, columns, starts, lengths, *(x.reshape(B, T, -1) for x in (q, k, v)))
    return out.reshape(B, T, N, H)


def _kernel(
    rows,  # (tiles,) int32, in SMEM, as the next three
    columns,  # (tiles,)
    starts,  # (B,)
    lengths,  # (B,)
    q_ref,  # (1, queries, P G H): the G query heads of each of P KV heads
    k_ref,  # (1, keys, P H)
    v_ref,  # (1, keys, P H)
    o_ref,  # (1, queries, P G H)
    top,  # (queries, P G) float32: the largest score so far, of each query and head
    total,  # (queries, P G) float32: the sum of weights so far, relative to it
    mixed,  # (queries, P G H) float32: the weighted sum of values so far
    *,
    T: int,
    G: int,
    H: int,
):
    queries, keys = q_ref.shape[1], k_ref.shape[1]
    b, step = pl.program_id(0), pl.program_id(2)
    i, j = rows[step], columns[step]
    start, length = starts[b], lengths[b]
    query, key = i * queries, j * keys  # The tile's upper left corner.
    last = _div(jnp.minimum(query + queries, T) - 1, keys)
    # float32 is asked for by those who want float32, not three bfloat16 digits of it.
    precision = jax.lax.Precision.HIGHEST if q_ref.dtype == jnp.float32 else None

    @pl.when(j == 0)
    def clear():
        top[...] = jnp.full_like(top, _LOWEST)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def tile(cut):
        if cut:
            s = key + jax.lax.broadcasted_iota(jnp.int32, (queries, keys), 1)
            t = query + jax.lax.broadcasted_iota(jnp.int32, (queries, keys), 0)
            seen = (start <= s) & (s <= t)
            s = key + jax.lax.broadcasted_iota(jnp.int32, (keys, 1), 0)
            text = (start <= s) & (s < length)
        for head in range(top.shape[1]):
            n, h = (slice(x * H, (x + 1) * H) for x in (head, head // G))
            one = slice(head, head + 1)
            k, v = k_ref[0, :, h], v_ref[0, :, h]
            scores = H**-0.5 * jax.lax.dot_general(
                q_ref[0, :, n],
                k,
                (((1,), (1,)), ((), ())),
                precision=precision,
                preferred_element_type=jnp.float32,
            )  # (queries, keys)
            if cut:
                scores = jnp.where(seen, scores, _LOWEST)
                v = jnp.where(text, v, 0)  # Weights of 0 don't undo a NaN.
            new = jnp.maximum(top[:, one], jnp.max(scores, axis=1, keepdims=True))
            weights = jnp.exp(scores - new)
            fade = jnp.exp(top[:, one] - new)
            top[:, one] = new
            total[:, one] = total[:, one] * fade + jnp.sum(weights, axis=1, keepdims=True)
            mixed[:, n] = mixed[:, n] * fade + jnp.dot(
                weights.astype(v.dtype),
                v,
                precision=precision,
                preferred_element_type=jnp.float32,
            )

    # Text in the rows and in the columns; the first tile of a row with text holds its first key.
    work = (query < length) & (query + queries > start) & (key < length) & (key + keys > start)
    whole = (start <= key) & (key + keys - 1 <= query) & (key + keys <= length)
    pl.when(work & whole)(lambda: tile(cut=False))
    pl.when(work & ~whole)(lambda: tile(cut=True))

    @pl.when(j == last)
    def finish():
        t = query + jax.lax.broadcasted_iota(jnp.int32, (queries, 1), 0)
        text = (start <= t) & (t < length)
        for head in range(top.shape[1]):
            n = slice(head * H, (head + 1) * H)
            out = jnp.where(text, mixed[:, n] / total[:, head : head + 1], 0)
            o_ref[0, :, n] = out.astype(o_ref.dtype)
