"""Decode attention without a kernel, in parts that can be joined."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Part(NamedTuple):
    """What attention to some slots gives, before the softmax's division.

    Attributes
    ----------
    mixed
        `sum(exp(score - largest) * value)`, shape (B, K, G, H), float32.
    largest
        The largest score, shape (B, K, G, 1).
    total
        `sum(exp(score - largest))`, same shape.
    """

    mixed: jax.Array
    largest: jax.Array
    total: jax.Array

    def join(self, other: "Part") -> "Part":
        """Return the attention to the slots of both."""
        largest = jnp.maximum(self.largest, other.largest)
        a, b = jnp.exp(self.largest - largest), jnp.exp(other.largest - largest)
        return Part(self.mixed * a + other.mixed * b, largest, self.total * a + other.total * b)

    def join_over(self, axis: str) -> "Part":
        """Return the attention to the slots of all chips of a mesh axis."""
        largest = lax.pmax(self.largest, axis)
        weight = jnp.exp(self.largest - largest)
        mixed, total = lax.psum((self.mixed * weight, self.total * weight), axis)
        return Part(mixed, largest, total)


def attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
    *,
    own: tuple[jax.Array, ...] = (),
) -> Part:
    """Attend from one query per sequence to the slots from `starts` up to `lengths`.

    All slots are read, filled or not, and unused values are multiplied by 0: they must be finite.
    A sequence without slots returns an average, whose weight vanishes once joined to others.

    Parameters
    ----------
    q
        Queries, already divided by `sqrt(H)`, shape (B, K, G, H).
    keys, values
        Shape (B, K, S, H).
    starts, lengths
        Shape (B,), integers.
    key_scales, value_scales
        Of an int8 cache: float32, shape (B, K, S). Otherwise None.
    own
        Key and value of the query's own position, shape (B, K, 1, H), float32, if they are not in
        the cache yet.
    """
    slots = jnp.arange(keys.shape[2])
    visible = (slots < lengths[:, None]) & (slots >= starts[:, None])
    scores = jnp.einsum(
        "bkgh,bksh->bkgs", q, keys.astype(q.dtype), preferred_element_type=jnp.float32
    )
    if key_scales is not None:
        scores = scores * key_scales[:, :, None]
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    largest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    scaled = weights if value_scales is None else weights * value_scales[:, :, None]
    mixed = jnp.einsum(
        "bkgs,bksh->bkgh",
        scaled.astype(q.dtype),
        values.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    part = Part(mixed, largest, weights.sum(axis=-1, keepdims=True))
    return part.join(one(q, *own)) if own else part


def one(q: jax.Array, key: jax.Array, value: jax.Array) -> Part:
    """Return the attention to a single position, whose key and value are (B, K, 1, H), float32."""
    score = (q.astype(jnp.float32) * key).sum(axis=-1, keepdims=True)
    return Part(value, score, jnp.ones_like(score))
