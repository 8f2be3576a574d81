"""Weights kept in fewer bits than they are multiplied in.

Decoding waits for weights to come from memory, so half the bytes is twice the speed, if widening
them costs nothing. On TPU and GPU it does: the compiler widens while it multiplies. XLA's CPU
backend instead writes the whole wide matrix to memory first, so there the product runs block by
block, each small enough to stay in the processor's cache.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb import compat

_BLOCK = 1 << 21
_LEAST_ROWS = 8
Product = Callable[..., jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A weight as it lies in memory, and what turns it into numbers.

    Attributes
    ----------
    values
        The weight's shape. int8: multiples of `scale`. uint16: the bits of bfloat16 numbers, which
        XLA's CPU backend would otherwise widen, all of them, at every use.
    scale
        For int8: float32, one per output: the output axes of a projection, (V, 1) of an embedding
        or head, so that `values * scale` broadcasts. Otherwise None.
    """

    values: jax.Array
    scale: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes in memory, scales included."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


def to_int8(
    x: Any, axis: int | tuple[int, ...], xp: Any = jnp, scale: Any = None
) -> tuple[Any, Any]:
    """Round to multiples of one scale per vector: symmetric int8.

    The scale maps the vector's largest magnitude to 127, so each number is off by at most half a
    scale. A vector of zeros (or below 1e-36) gets scale 1.

    Parameters
    ----------
    x
        Numbers of any float dtype, computed with in float32.
    axis
        The axes that share one scale.
    xp
        `jax.numpy`, or `numpy` while loading.
    scale
        Of whole vectors of which `x` is a part; None finds it.

    Returns
    -------
    tuple
        int8 values of the shape of `x`, and float32 scales with those axes of size 1.
    """
    x = x.astype(xp.float32)
    if scale is None:
        largest = abs(x).max(axis=axis, keepdims=True)
        # Below that a scale would be subnormal, which processors may take for 0.
        zero = largest < 127 * float(np.finfo(np.float32).tiny)
        scale = xp.where(zero, xp.float32(1), largest / xp.float32(127))
    return xp.rint(x / scale).astype(xp.int8), scale


def widen(values: jax.Array, dtype: Any) -> jax.Array:
    """Return int8 values, or bfloat16 bits, as numbers of a float dtype."""
    if values.dtype != jnp.uint16:
        return values.astype(dtype)
    if dtype == jnp.float32:
        # bfloat16 is the upper half of float32: a shift, which CPUs do eight at a time.
        return jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)
    return jax.lax.bitcast_convert_type(values, jnp.bfloat16).astype(dtype)


def unpack(weight: Packed, dtype: Any = jnp.float32) -> jax.Array:
    """Return the whole weight as numbers: for looking at it, not for speed."""
    wide = widen(weight.values, dtype)
    return wide if weight.scale is None else wide * weight.scale.astype(dtype)


def take(weight: Packed, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Return rows of an embedding (V, D) for tokens (B, T): shape (B, T, D)."""
    rows = widen(_lookup(weight.values, tokens), dtype)
    return rows if weight.scale is None else rows * weight.scale[tokens].astype(dtype)


def _lookup(values: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return `values[tokens]`, which for a few tokens is asked for with more.

    A single row is a slice, for which the TPU compiler wants the table in another layout: it would
    copy all of it, half a gigabyte at 8B, in every step.
    """
    few = tokens.size
    if few >= _LEAST_ROWS:
        return values[tokens]
    rows = values[jnp.pad(tokens.reshape(-1), (0, _LEAST_ROWS - few))]
    return jax.lax.optimization_barrier(rows)[:few].reshape(*tokens.shape, -1)


def project(
    rows: jax.Array, weight: Packed, contract: int, product: Product | None = None
) -> jax.Array:
    """Multiply (M, I) with a projection whose first `contract` axes are the I inputs.

    Parameters
    ----------
    product
        What multiplies int8 matrices in XLA's place (`kernels.matmul.product`).

    Returns
    -------
    jax.Array
        Shape (M, O), dtype of `rows`.
    """
    inputs = math.prod(weight.shape[:contract])
    values = weight.values.reshape(inputs, -1)
    if product is not None and weight.scale is not None:
        return (product(rows, values) * weight.scale.reshape(-1)).astype(rows.dtype)
    flat = jax.lax.platform_dependent(rows, values, cpu=_project_blocks, default=_project)
    return flat if weight.scale is None else flat * weight.scale.reshape(-1).astype(rows.dtype)


def _project(rows: jax.Array, values: jax.Array) -> jax.Array:
    return rows @ widen(values, rows.dtype)


def _project_blocks(rows: jax.Array, values: jax.Array) -> jax.Array:
    """Add up the products of blocks of inputs."""
    if rows.shape[0] == 1 and compat.ONE_ROW_IS_SLOW:
        return _project_blocks(jnp.concatenate([rows, rows]), values)[:1]
    (M, inputs), outputs = rows.shape, values.shape[1]
    size = _block(inputs, outputs)

    def add(total, start):
        block = jax.lax.dynamic_slice_in_dim(values, start, size, 0)
        part = jax.lax.dynamic_slice_in_dim(rows, start, size, 1)
        return total + _project(part, block), None

    whole = inputs // size * size
    total = jnp.zeros((M, outputs), rows.dtype)
    total, _ = jax.lax.scan(add, total, jnp.arange(0, whole, size))
    return total if whole == inputs else total + _project(rows[:, whole:], values[whole:])


def _block(length: int, width: int) -> int:
    # At least two blocks: XLA unrolls a loop of one, and widens all matrices before any product.
    return max(1, min(length // 2, _BLOCK // width))


def unembed(rows: jax.Array, weight: Packed, product: Product | None = None) -> jax.Array:
    """Multiply (M, D) with a head (V, D), as `project` does: logits of shape (M, V), float32."""
    if product is not None and weight.scale is not None:
        return product(rows, weight.values, outputs_first=True) * weight.scale[:, 0]
    flat = jax.lax.platform_dependent(rows, weight.values, cpu=_unembed_blocks, default=_unembed)
    return flat if weight.scale is None else flat * weight.scale[:, 0]


def _unembed(rows: jax.Array, values: jax.Array) -> jax.Array:
    wide = widen(values, rows.dtype)
    if rows.shape[0] == 1:
        return jnp.matmul(wide, rows[0], preferred_element_type=jnp.float32)[None]
    return jnp.matmul(rows, wide.T, preferred_element_type=jnp.float32)


def _unembed_blocks(rows: jax.Array, values: jax.Array) -> jax.Array:
    """Compute the logits of one block of the vocabulary after another."""
    (vocab, width), M = values.shape, rows.shape[0]
    size = _block(vocab, width)

    def logits(_, start):
        return None, _unembed(rows, jax.lax.dynamic_slice_in_dim(values, start, size, 0))

    whole = vocab // size * size
    _, blocks = jax.lax.scan(logits, None, jnp.arange(0, whole, size))  # (blocks, M, size)
    flat = blocks.transpose(1, 0, 2).reshape(M, whole)
    if whole == vocab:
        return flat
    return jnp.concatenate([flat, _unembed(rows, values[whole:])], axis=1)
