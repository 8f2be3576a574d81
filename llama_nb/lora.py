"""A weight and a small change to it, which is never added up: LoRA's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb.packed import Packed, unpack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A weight that is `base + scale * a @ b`, without that sum ever being formed.

    Of a product `x @ weight` the second part is `scale * (x @ a) @ b`: through r numbers, so it
    costs r (I + O) multiplications rather than I O. `layers.dense` multiplies so.

    Attributes
    ----------
    base
        Shape (*inputs, *outputs): an array, or one kept in fewer bits. None where the two parts of
        a tree are apart (`train.tuning.divide`), as are `a` and `b` in the other part.
    a
        Shape (*inputs, r).
    b
        Shape (r, *outputs).
    scale
        What the change is multiplied with: alpha / r.

    References
    ----------
    Hu et al. 2021, equation 3.
    """

    base: jax.Array | Packed | None
    a: jax.Array | None
    b: jax.Array | None
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.base.shape


def change(weight: LowRank) -> jax.Array:
    """Return `scale * a @ b`, in the weight's shape, float32."""
    a, b = (x.astype(jnp.float32) for x in (weight.a, weight.b))
    exact = jax.lax.Precision.HIGHEST  # It is done once, and TPUs would round to bfloat16.
    return weight.scale * jnp.tensordot(a, b, 1, precision=exact)


def merged(weight: LowRank) -> jax.Array:
    """Return the weight as one array: the sum in float32, then in the base's own dtype.

    A base of int8 numbers or packed bits comes out in float32.
    """
    base = unpack(weight.base) if isinstance(weight.base, Packed) else weight.base
    return (base.astype(jnp.float32) + change(weight)).astype(base.dtype)


def merge(params: Any) -> Any:
    """Return a tree of plain arrays: changes added to their weights, packed weights made wide."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, LowRank):
            return merged(leaf)
        return unpack(leaf) if isinstance(leaf, Packed) else leaf

    return jax.tree.map(plain, params, is_leaf=lambda leaf: isinstance(leaf, LowRank | Packed))
