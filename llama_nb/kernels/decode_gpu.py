"""Decode attention on NVIDIA GPUs: each sequence's filled keys, split over many programs.

Written for Pallas' Triton backend: deprecated since jax 0.11, it is still the one that every jax
from 0.7 to 0.12 has, that serves Ampere as well as Hopper, and whose code Triton compiles without a
GPU. Its successor, Mosaic GPU, differs in each of them and is for Hopper and later; where Triton is
gone `available` says so, plain XLA takes over, and the few lines under "Backend" are what to move.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from llama_nb.errors import InputError
from llama_nb.kernels.ragged import NOTHING
from llama_nb.kernels.refusal import refusal

# Backend: all that is particular to Triton, besides masked loads and stores.
try:
    from jax.experimental.pallas import triton as backend

    MISSING = ""
except ImportError:  # Some jax after 0.12.
    backend = None
    MISSING = "this jax has no Triton backend for Pallas"

OLDEST = 8.0  # compute capability: tensor cores that take bfloat16, copies that don't wait
WARPS, STAGES = 4, 3  # threads / 32 of a program; blocks in flight

ROWS = 16  # query rows of the smallest tensor-core product
BYTES = 16 * 1024  # of keys in one block: with values and STAGES, 2 or 3 programs fit an SM
MOST = 128  # slots of a block, so that short sequences still have some for every SM
PROGRAMS = 4  # to each SM: two at a time, and others to follow when those are short
H100_SMS = 132  # where there is no GPU to ask


def available(keys: Any = None) -> str:
    """Return why the kernel can't be used on this machine, or nothing if it can.

    The first answer on a GPU takes a second: it compiles a tiny case, so that whatever a future jax
    or an unknown chip does not like is a reason to use XLA and not a crash.

    Parameters
    ----------
    keys
        The keys to be read, or anything with their shape and dtype; None asks for the machine only.
    """
    if MISSING:
        return MISSING
    if jax.default_backend() not in ("gpu", "cuda"):
        return "there is no GPU"
    return _refusal(keys) or _machine(jax.devices()[0])


@functools.lru_cache
def _machine(device: jax.Device) -> str:
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):
        return f"the kernel is for NVIDIA GPUs, and this is {device.device_kind}"
    if capability < OLDEST:
        return f"the kernel needs compute capability {OLDEST}, and this GPU has {capability}"
    q4, keys = (jax.ShapeDtypeStruct((1, 1, n, 64), jnp.bfloat16) for n in (1, 64))
    numbers = jax.ShapeDtypeStruct((1,), jnp.int32)
    reason = refusal(decode_attention, q4, keys, keys, numbers, numbers)
    return reason and f"the kernel does not compile here: {reason}"


def _refusal(keys: Any) -> str:
    if keys is None:
        return ""
    H = keys.shape[-1]
    if H < ROWS or H & (H - 1):
        return f"Triton's blocks are powers of two from {ROWS} on, and heads are {H} wide"
    if keys.dtype == jnp.int8 and keys.size > 2**31:
        return "Pallas counts in 32 bits what is over 2^31 and at most 2^32 bytes"
    return ""


def decode_attention(
    q4: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
    *,
    block: int | None = None,
    splits: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Attend with one query per head to the filled slots of a cache.

    The filled blocks of a sequence are dealt to `splits` programs, which run an online softmax
    each; `merge` combines their answers. Products are of the wider of the two dtypes (int8 counts
    as the queries'): give queries as the model computes them, float32 ones miss the tensor cores.

    Parameters
    ----------
    q4
        Queries times H**-0.5, shape (B, K, G, H), bfloat16, float16 or float32.
    keys, values
        Shape (B, K, S, H), of these dtypes or int8; H a power of two.
    starts, lengths
        Shape (B,), int32: sequence b attends to slots `starts[b] <= s < lengths[b]`. What the other
        slots hold is not used, NaN neither.
    key_scales, value_scales
        With int8: float32, shape (B, K, S).
    block
        Slots of a block, a power of two from 16 on; by default those in 16 KiB, or less.
    splits
        Programs to a sequence's KV head; by default as many as fill the GPU.
    interpret
        Run on any platform, by an interpreter.

    Returns
    -------
    tuple of jax.Array
        The mixed values, float32 of shape (B, K, G, H), zeros where there is no slot to look at,
        and the logarithm of the sum of exponentials of scores, float32 of shape (B, K, G), there
        `NOTHING`.

    Raises
    ------
    InputError
        If `block` or H is not a power of two of at least 16, or Triton is gone.

    References
    ----------
    Dao et al. 2023, "Flash-Decoding for long-context inference".
    """
    B, K, G, H = q4.shape
    S = keys.shape[2]
    # Products of float32 are left to ordinary arithmetic, in registers: fewer slots at a time.
    slot = H * (8 if _dtype(q4, keys) == jnp.float32 else keys.dtype.itemsize)
    block = block or min(max(ROWS, _power(BYTES // slot + 1) // 2), MOST)
    if block < ROWS or block & (block - 1):
        raise InputError(f"A block of the GPU kernel is a power of two from 16 on, not {block}.")
    if reason := MISSING or _refusal(keys):
        raise InputError(f"The GPU kernel can't be used: {reason}.")
    if splits is None:
        splits = min(pl.cdiv(PROGRAMS * _sms(), B * K), pl.cdiv(S, block))
    rows = _power(max(G, ROWS))

    def whole(*shape):  # of one sequence and KV head
        return pl.BlockSpec((None, None, *shape), lambda b, k, i: (b, k) + (0,) * len(shape))

    def part(*shape):  # of one program
        return pl.BlockSpec(
            (None, None, None, *shape), lambda b, k, i: (b, k, i) + (0,) * len(shape)
        )

    number = pl.BlockSpec((None,), lambda b, k, i: (b,))
    scales = () if key_scales is None else (key_scales, value_scales)
    call = pl.pallas_call(
        functools.partial(_kernel, G=G, S=S, rows=rows, block=block, splits=splits),
        grid=(B, K, splits),
        in_specs=[
            number,
            number,
            whole(rows, H),
            whole(S, H),
            whole(S, H),
            *(whole(S) for _ in scales),
        ],
        out_specs=[part(rows, H), part(rows)],
        out_shape=[
            jax.ShapeDtypeStruct((B, K, splits, G, H), jnp.float32),
            jax.ShapeDtypeStruct((B, K, splits, G), jnp.float32),
        ],
        compiler_params=backend.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="decode_attention",
    )
    return merge(*call(starts, lengths, q4, keys, values, *scales))


def _kernel(start_ref, length_ref, q_ref, k_ref, v_ref, *refs, G, S, rows, block, splits):
    """Mix the values of one program's blocks.

    q_ref (rows, H), of which the first G are there; k_ref, v_ref (S, H); with int8 their scales
    (S,); then the outputs: mixed (rows, H) and its log-sum-exp (rows,).
    """
    *scale_refs, o_ref, lse_ref = refs
    start, length = jnp.maximum(start_ref[...], 0), jnp.minimum(length_ref[...], S)
    dtype = _dtype(q_ref, k_ref)
    # By default Triton rounds float32 to the 10 bits of TF32.
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    dot = functools.partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)

    is_row = jnp.arange(rows) < G
    H = q_ref.shape[-1]
    row_mask = jnp.broadcast_to(is_row[:, None], (rows, H))
    q = backend.load(q_ref.at[:, :], mask=row_mask, other=jnp.zeros((), q_ref.dtype)).astype(dtype)

    # Which of the blocks that hold filled slots are this program's: every one holds at least one.
    first = start // block
    blocks = jnp.where(length > start, pl.cdiv(length, block) - first, 0)
    share = pl.cdiv(blocks, splits)
    low = pl.program_id(2) * share
    high = jnp.minimum(low + share, blocks)

    def step(i, carry):
        mixed, top, total = carry
        here = pl.ds(i * block, block)
        slots = i * block + jnp.arange(block)
        filled = (slots >= start) & (slots < length)

        def load(ref):
            if len(ref.shape) == 1:
                return backend.load(ref.at[here], mask=filled, other=0.0)
            mask = jnp.broadcast_to(filled[:, None], (block, H))
            # Zeros where nothing is stored: 0 times a NaN would be a NaN.
            return backend.load(ref.at[here, :], mask=mask, other=jnp.zeros((), ref.dtype)).astype(
                dtype
            )

        scores = dot(q, load(k_ref).T)  # (rows, block)
        if scale_refs:
            scores = scores * load(scale_refs[0])[None, :]
        scores = jnp.where(filled[None, :], scores, NOTHING)
        new = jnp.maximum(top, scores.max(axis=1))
        weights = jnp.exp(scores - new[:, None])
        shrink = jnp.exp(top - new)
        total = total * shrink + weights.sum(axis=1)
        if scale_refs:
            weights = weights * load(scale_refs[1])[None, :]
        mixed = mixed * shrink[:, None] + dot(weights.astype(dtype), load(v_ref))
        return mixed, new, total

    zeros = jnp.zeros((rows,), jnp.float32)
    carry = (jnp.zeros((rows, H), jnp.float32), zeros + NOTHING, zeros)
    mixed, top, total = jax.lax.fori_loop(first + low, first + high, step, carry)
    some = jnp.where(total > 0, total, 1.0)
    backend.store(o_ref.at[:, :], mixed / some[:, None], mask=row_mask)
    backend.store(lse_ref.at[:], top + jnp.log(some), mask=is_row)


def merge(parts: jax.Array, lses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Combine attention over disjoint sets of keys into attention over all.

    `out = sum_i w_i out_i` with `w_i = exp(lse_i - lse)` and `lse = log sum_i exp(lse_i)`.

    Parameters
    ----------
    parts
        Shape (B, K, P, G, H), float32: attention over each of P sets, zeros where one is empty.
    lses
        Shape (B, K, P, G), float32: log-sum-exp of its scores, `NOTHING` if empty.

    Returns
    -------
    tuple of jax.Array
        Shapes (B, K, G, H) and (B, K, G).
    """
    top = lses.max(axis=2, keepdims=True)
    weights = jnp.exp(lses - top)  # Where all are empty each counts, with zeros.
    total = weights.sum(axis=2)
    out = (weights[..., None] * parts).sum(axis=2) / total[..., None]
    return out, top[:, :, 0] + jnp.log(total)


def _dtype(queries: Any, keys: Any) -> Any:
    """Return what both are multiplied in."""
    if keys.dtype == jnp.int8:
        return queries.dtype
    return jnp.promote_types(queries.dtype, keys.dtype)


def _power(n: int) -> int:
    """Return the power of two at or above n."""
    return 1 << (n - 1).bit_length()


def _sms() -> int:
    return getattr(jax.devices()[0], "core_count", H100_SMS)
