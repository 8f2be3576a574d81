"""The KV cache: what attention keeps of the past, as one pytree of fixed shape."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from llama_nb import packed
from llama_nb.config import LlamaConfig

if TYPE_CHECKING:
    from llama_nb.sharding import Layout

AXES = ("cache_batch", "kv_heads", "slots", "head_dim")  # the logical axes of (B, K, S, H)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, and which of their slots hold text.

    Sequences of different lengths share the next free slot: each begins where it must to end with
    the others. Fixed shapes are what lets one compiled step serve every token, and donating the
    cache to that step is what lets it write in place.

    Attributes
    ----------
    keys, values
        One array per layer, shape (B, K, S, H): a head's keys lie side by side, as attention reads
        them. Separate arrays, since updating a slice of one stacked array would move all of it.
    starts
        Slot of each sequence's first token, shape (B,), int32.
    length
        Slots in use, counted from 0, shape (), int32; the next token goes there.
    key_scales, value_scales
        Of an int8 cache: float32, one array per layer, shape (B, K, S); otherwise empty.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    starts: jax.Array
    length: jax.Array
    key_scales: tuple[jax.Array, ...] = ()
    value_scales: tuple[jax.Array, ...] = ()

    @classmethod
    def create(
        cls,
        config: LlamaConfig,
        batch: int,
        capacity: int,
        dtype: jnp.dtype = jnp.float32,
        layout: "Layout | None" = None,
    ) -> "KVCache":
        """Return an empty cache of `capacity` slots for `batch` sequences.

        With dtype int8 every key and value is rounded to 255 steps of its own scale: half the bytes
        of bfloat16, and a scale for every H of them. A `layout` splits it over a mesh.
        """
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)

        # Distinct arrays: a donated buffer may appear in a call only once.
        def empty(shape, dtype):
            zeros = (jnp.zeros(shape, dtype) for _ in range(config.num_layers))
            if layout is None:
                return tuple(zeros)
            return tuple(layout.place(array, *AXES[: len(shape)]) for array in zeros)

        int8 = jnp.dtype(dtype) == jnp.int8
        return cls(
            keys=empty(shape, dtype),
            values=empty(shape, dtype),
            starts=jnp.zeros((batch,), jnp.int32),
            length=jnp.zeros((), jnp.int32),
            key_scales=empty(shape[:-1], jnp.float32) if int8 else (),
            value_scales=empty(shape[:-1], jnp.float32) if int8 else (),
        )

    @property
    def capacity(self) -> int:
        """Slots, S."""
        return self.keys[0].shape[2]

    def positions(self, T: int) -> jax.Array:
        """Return the RoPE positions of the next T tokens, shape (B, T); padding counts as 0."""
        slots = self.length + jnp.arange(T)
        return jnp.maximum(slots[None, :] - self.starts[:, None], 0)

    def write(self, layer: int, k: jax.Array, v: jax.Array) -> "KVCache":
        """Return the cache with T new keys and values of one layer in the next slots.

        `length` stays: it moves once, when all layers have written. The caller makes sure that the
        slots are free; XLA would clamp the start and overwrite the past.

        Parameters
        ----------
        k, v
            Shape (B, T, K, H).
        """

        def put(arrays, new):
            old = arrays[layer]
            corner = (0, 0, self.length, 0)[: new.ndim]
            new = jax.lax.dynamic_update_slice(old, new.astype(old.dtype), corner)
            return (*arrays[:layer], new, *arrays[layer + 1 :])

        fields = {}
        for name, new in (("key", k), ("value", v)):
            new = new.transpose(0, 2, 1, 3)  # (B, K, T, H)
            if self.key_scales:
                new, scale = packed.to_int8(new, axis=-1)
                fields[f"{name}_scales"] = put(getattr(self, f"{name}_scales"), scale[..., 0])
            fields[f"{name}s"] = put(getattr(self, f"{name}s"), new)
        return dataclasses.replace(self, **fields)

    def read(self, layer: int) -> tuple[jax.Array, jax.Array]:
        """Return one layer's keys and values, each of shape (B, S, K, H), unused slots included.

        The transpose is a matter of names: XLA reads the cache as it lies.
        """
        return self.keys[layer].transpose(0, 2, 1, 3), self.values[layer].transpose(0, 2, 1, 3)

    def scales(self, layer: int) -> tuple[jax.Array, ...]:
        """Return one layer's scales of keys and of values, each (B, S, K); none if not int8."""
        if not self.key_scales:
            return ()
        both = (self.key_scales[layer], self.value_scales[layer])
        return tuple(scale.transpose(0, 2, 1) for scale in both)
