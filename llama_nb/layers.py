"""The mathematics of a Llama, one pure function per idea.

Arrays in, arrays out, no parameters and no state. Shapes use the book's letters: B batch, T query
positions, S key positions, D model width, N query heads, K KV heads, G = N / K, H head width,
F feed-forward width.
"""

import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llama_nb import packed
from llama_nb.config import RopeScaling
from llama_nb.lora import LowRank

# What multiplies matrices is one program outside of `jit` too. Operation by operation, the CPU
# backend of jax 0.7.2 now and then returns wrong products with a matrix that was just reshaped.
_one_program = functools.partial(jax.jit, inline=True)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Scale each vector to root mean square 1, then by a learned gain.

    `x / sqrt(mean(x^2) + eps) * weight`. The statistics are float32 whatever `x` is: in bfloat16
    the sum of D squares keeps 8 bits.

    Parameters
    ----------
    x
        Shape (..., D), any float dtype.
    weight
        Gains, shape (D,).
    eps
        Added to the mean square, so that a zero vector stays zero.

    Returns
    -------
    jax.Array
        Shape and dtype of `x`.

    References
    ----------
    Zhang and Sennrich 2019, equation 4; the order of cast and gain is Meta's.
    """
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * weight.astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Return the angle by which each pair turns per position, in radians.

    Pair `i` turns by `theta ** (-2 i / H)`. Llama 3.1 divides the slow ones (wavelength above
    `original_context / low_freq_factor`) by `factor`, keeps the fast ones (below
    `original_context / high_freq_factor`) and blends linearly in between.

    Returns
    -------
    numpy.ndarray
        Shape (H/2,), float32; a constant of the model, so it is computed outside of any trace.

    References
    ----------
    Su et al. 2021, equation 15; the bands are those of Meta's code, `apply_scaling`.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        wavelengths = 2 * math.pi / frequencies
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # 0 where the wavelength is too long for the original context, 1 where it fits often.
        kept = np.clip((scaling.original_context / wavelengths - low) / (high - low), 0.0, 1.0)
        frequencies = (kept + (1 - kept) / scaling.factor) * frequencies
    return frequencies.astype(np.float32)


def rope_angles(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return the cosine and sine of every pair's angle at every position.

    Parameters
    ----------
    positions
        Integer positions, shape (B, T); any order, any gaps.
    frequencies
        Shape (H/2,), from `rope_frequencies`.

    Returns
    -------
    tuple of jax.Array
        Two arrays of shape (B, T, 1, H/2), float32; the 1 broadcasts over heads.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate each pair of features by its angle.

    Feature `i` is paired with `i + H/2` (Hugging Face's layout; Meta's checkpoints pair `2 i` with
    `2 i + 1`, which loading undoes). The rotation is computed in float32.

    Parameters
    ----------
    x
        Queries or keys, shape (B, T, N, H).
    cos, sin
        Shape (B, T, 1, H/2), from `rope_angles`.

    Returns
    -------
    jax.Array
        Shape and dtype of `x`.

    References
    ----------
    Su et al. 2021, equation 34.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


@_one_program
def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query attention: `softmax(q k^T / sqrt(H)) v`, G query heads to each KV head.

    The G queries of a group and the T positions become rows of one matrix product per KV head, so
    keys and values are read once and never repeated. Scores and softmax are float32.

    Parameters
    ----------
    q
        Queries, shape (B, T, N, H).
    k, v
        Keys and values, shape (B, S, K, H), with N a multiple of K.
    mask
        Boolean, shape (B, T, S): True where query t may look at key s. None lets all look at all.
        A row that may look at nothing (padding) returns an average, never NaN.
    k_scale, v_scale
        Of int8 keys and values: float32 of shape (B, S, K), one scale per key and per value. They
        multiply scores and weights, which are H times fewer than keys and values.

    Returns
    -------
    jax.Array
        Shape (B, T, N, H), dtype of `q`.

    References
    ----------
    Vaswani et al. 2017, equation 1; Ainslie et al. 2023 for the groups.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    rows = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k, v = (x.astype(q.dtype) if x.dtype == jnp.int8 else x for x in (k, v))
    scores = jnp.einsum("bkmh,bskh->bkms", rows, k, preferred_element_type=jnp.float32)
    scores = scores * (H**-0.5)
    if k_scale is not None:
        scores = scores * k_scale.transpose(0, 2, 1)[:, :, None]
    if mask is not None:
        scores = scores.reshape(B, K, G, T, -1)
        # Finite, so that a row with nothing to see is a mean and not 0/0.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
        scores = scores.reshape(B, K, G * T, -1)
    weights = jax.nn.softmax(scores, axis=-1)
    if v_scale is not None:
        weights = weights * v_scale.transpose(0, 2, 1)[:, :, None]
    weights = weights.astype(v.dtype)
    mixed = jnp.einsum("bkms,bskh->bkmh", weights, v)
    return mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, block: int
) -> jax.Array:
    """`attention` of a sequence to itself, skipping keys that lie in the future of a whole block.

    Queries are cut into blocks of `block` positions, and each sees only the keys up to its own end:
    half of the score matrix is never computed.

    Parameters
    ----------
    q
        Shape (B, T, N, H).
    k, v
        Shape (B, T, K, H): the same positions as the queries.
    mask
        Boolean, shape (B, T, T), False above the diagonal.
    block
        Queries per block; T or more means one block.
    """
    ends = [*range(block, q.shape[1], block), q.shape[1]]
    starts = [0, *ends[:-1]]
    outputs = [
        attention(q[:, start:end], k[:, :end], v[:, :end], mask[:, start:end, :end])
        for start, end in zip(starts, ends, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def causal_mask(starts: jax.Array, first: jax.Array | int, T: int, S: int) -> jax.Array:
    """Return which key slots each query may look at, for prompts padded on the left.

    Query t of any row sits in slot `first + t`; row b's text begins in slot `starts[b]`. A query
    sees the slots from there to its own.

    Parameters
    ----------
    starts
        Shape (B,), integers.
    first
        Slot of the first query.
    T, S
        Number of queries and of slots.

    Returns
    -------
    jax.Array
        Boolean, shape (B, T, S).
    """
    slots = jnp.arange(S)
    causal = slots[None, :] <= (first + jnp.arange(T))[:, None]  # (T, S)
    return causal[None] & (slots >= starts[:, None])[:, None, :]


@functools.partial(_one_program, static_argnames=("contract", "product"))
def dense(
    x: jax.Array,
    weight: jax.Array | packed.Packed | LowRank,
    contract: int = 1,
    product: packed.Product | None = None,
) -> jax.Array:
    """Multiply the last `contract` axes of `x` with the first `contract` axes of `weight`.

    Written as one product of two matrices: XLA's CPU backend streams those at the memory's speed
    and does not always find them inside a higher-rank einsum.

    Parameters
    ----------
    x
        Shape (B, T, *inputs).
    weight
        Shape (*inputs, *outputs), `contract` of them inputs; an array, one kept in fewer bits, or
        one with a change of low rank.
    product
        Static: as in `packed.project`.

    Returns
    -------
    jax.Array
        Shape (B, T, *outputs), dtype of `x`.
    """
    if isinstance(weight, LowRank):
        change = dense(dense(x, weight.a, contract), weight.b)
        return dense(x, weight.base, contract, product) + weight.scale * change
    if _on_explicit_axes(x):
        return _explicit_product(x, _wide(weight, x), contract)
    inputs, outputs = weight.shape[:contract], weight.shape[contract:]
    lead = x.shape[: x.ndim - contract]
    rows = x.reshape(-1, math.prod(inputs))
    if isinstance(weight, packed.Packed):
        return packed.project(rows, weight, contract, product).reshape(*lead, *outputs)
    matrix = weight.reshape(math.prod(inputs), -1)
    if rows.shape[0] == 1:
        flat = jax.lax.platform_dependent(rows, matrix, cpu=_row_times_matrix, default=jnp.matmul)
    else:
        flat = rows @ matrix
    return flat.reshape(*lead, *outputs)


def _on_explicit_axes(x: jax.Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def _wide(weight: jax.Array | packed.Packed, x: jax.Array) -> jax.Array:
    return packed.unpack(weight, x.dtype) if isinstance(weight, packed.Packed) else weight


def _explicit_product(
    x: jax.Array, weight: jax.Array, contract: int, dtype: Any = None
) -> jax.Array:
    """Multiply as `dense` does, and say that partial sums are to be added up.

    On Explicit axes JAX asks for it: they could also be left scattered. Lengths that are split
    stay as they are, so nothing is flattened.
    """
    lead = x.ndim - contract
    left, right = jax.typeof(x).sharding, jax.typeof(weight).sharding
    whole = PartitionSpec(*left.spec[:lead], *right.spec[contract:])
    inner = (tuple(range(lead, x.ndim)), tuple(range(contract)))
    return jax.lax.dot_general(
        x,
        weight,
        (inner, ((), ())),
        preferred_element_type=dtype,
        out_sharding=NamedSharding(left.mesh, whole),
    )


def _row_times_matrix(row: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply (1, I) with (I, O), one part of the inputs per core.

    XLA's CPU backend gives such a product to one core, whose share of the memory's bandwidth is
    half or less; the parts of a batched product go to all of them.
    """
    size = row.shape[1]
    parts = max(n for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1) and size % n == 0)
    row, matrix = row.reshape(parts, size // parts), matrix.reshape(parts, size // parts, -1)
    return jnp.einsum("pi,pio->po", row, matrix).sum(axis=0, keepdims=True)


@functools.partial(_one_program, static_argnames=("product",))
def unembed(
    x: jax.Array, table: jax.Array | packed.Packed, product: packed.Product | None = None
) -> jax.Array:
    """Compare hidden states with every row of the head: logits.

    Parameters
    ----------
    x
        Shape (B, T, D).
    table
        The head, or the embedding where they are tied: shape (V, D).
    product
        Static: as in `packed.project`.

    Returns
    -------
    jax.Array
        Shape (B, T, V), float32.
    """
    if _on_explicit_axes(x):
        return _explicit_product(x, _wide(table, x).T, 1, jnp.float32)
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(table, packed.Packed):
        flat = packed.unembed(rows, table, product)
    elif rows.shape[0] == 1:
        # matrix @ vector: four times as fast as vector @ matrix.T on recent CPU backends.
        flat = jnp.matmul(table, rows[0], preferred_element_type=jnp.float32)
    else:
        flat = jnp.matmul(rows, table.T, preferred_element_type=jnp.float32)
    return flat.reshape(*x.shape[:-1], -1)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Gate one half of the feed-forward layer with the other: `silu(gate) * up`.

    Parameters
    ----------
    gate, up
        Shape (..., F).

    References
    ----------
    Shazeer 2020, equation 6; `silu(z) = z * sigmoid(z)`.
    """
    return jax.nn.silu(gate) * up
