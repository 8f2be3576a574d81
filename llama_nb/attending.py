"""Where the model goes through a kernel: attention, and large int8 matrices on one chip."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from llama_nb import cache as caches
from llama_nb.kernels.choice import Choice

if TYPE_CHECKING:
    from llama_nb.cache import KVCache
    from llama_nb.sharding import Layout


def kernel(
    choice: Choice | str, layout: "Layout | None", *, fresh: bool, end: Any
) -> Callable[..., jax.Array] | None:
    """Return what attends in a kernel's place, or None where XLA does.

    Parameters
    ----------
    choice
        What the program was made for; a mere name means XLA.
    layout
        How the cache lies on a mesh.
    fresh
        True for whole prompts in an empty cache, False for one token after what is in it.
    end
        Slots in use, the new ones included; a scalar.

    Returns
    -------
    callable or None
        Maps a cache that has the new keys and values, a layer's number, queries (B, T, N, H), and
        new keys and values (B, T, K, H), to (B, T, N, H).
    """
    if not isinstance(choice, Choice) or choice.kind != "pallas":
        return None
    from llama_nb import kernels
    from llama_nb.kernels import sharded

    def place(cache: "KVCache", layer: int) -> tuple[Any, Any]:
        return layout.mesh, layout.spec(cache.keys[layer].shape, caches.AXES)

    def prefill(cache: "KVCache", layer: int, q, k, v) -> jax.Array:
        ends = jnp.broadcast_to(end, cache.starts.shape)
        options = {"implementation": choice}
        if layout is None:
            return kernels.flash_attention(q, k, v, cache.starts, ends, **options)
        return sharded.flash(*place(cache, layer), q, k, v, cache.starts, ends, **options)

    def decode(cache: "KVCache", layer: int, q, k, v) -> jax.Array:
        ends = jnp.broadcast_to(end, cache.starts.shape)
        scales = (cache.key_scales[layer], cache.value_scales[layer]) if cache.key_scales else ()
        kept = (cache.keys[layer], cache.values[layer], cache.starts, ends)
        if layout is None:
            scales = dict(zip(("key_scales", "value_scales"), scales, strict=False))
            out = kernels.decode_attention(q[:, 0], *kept, **scales, implementation=choice)
        else:
            where = place(cache, layer)
            out = sharded.decode(*where, q[:, 0], *kept, *scales, implementation=choice)
        return out[:, None]

    return prefill if fresh else decode


def product(
    choice: Choice | str, layout: "Layout | None", rows: int
) -> Callable[..., jax.Array] | None:
    """Return what multiplies so many rows with int8 matrices, or None where XLA does.

    A kernel is one device's program: on a mesh the products stay XLA's, which splits them.
    """
    if layout is not None and layout.mesh.size > 1:
        return None
    from llama_nb.kernels import matmul

    return matmul.product if matmul.streams(choice, rows) else None
