"""The kernels on a mesh: inside `shard_map`, every device attends with what it has.

A kernel is one device's program, which the compiler can't split. KV heads and sequences need no
talk; where the slots of a cache are split, each device's part of a softmax is joined at the end.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb.kernels.decode import decode_attention
from llama_nb.kernels.decode_xla import Part
from llama_nb.kernels.flash import flash_attention


def decode(
    mesh: Mesh,
    spec: PartitionSpec,
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *scales: jax.Array,
    **options: Any,
) -> jax.Array:
    """Return `decode_attention` to a cache that is split over a mesh.

    Parameters
    ----------
    spec
        How keys and values (B, K, S, H) are split: sequences, KV heads, slots. H stays whole.
    options
        `implementation`, `interpret` and `block` of `decode_attention`.
    """
    rows, heads, slots, _ = (*spec, None, None, None, None)[:4]
    by_heads, by_rows = PartitionSpec(rows, heads), PartitionSpec(rows)

    def local(q, keys, values, starts, lengths, *scales):
        if slots is not None:
            first = lax.axis_index(slots) * keys.shape[2]
            starts, lengths = (jnp.clip(x - first, 0, keys.shape[2]) for x in (starts, lengths))
        key_scales, value_scales = scales or (None, None)
        out, lse = decode_attention(
            q,
            keys,
            values,
            starts,
            lengths,
            key_scales=key_scales,
            value_scales=value_scales,
            return_lse=True,
            **options,
        )
        if slots is not None:
            # Devices that see nothing return zeros, and count only if none sees anything.
            part = Part(out, lse[..., None], jnp.ones_like(lse)[..., None]).join_over(slots)
            out = part.mixed / part.total
        return out.astype(q.dtype)

    cache = PartitionSpec(rows, heads, slots)
    specs = (by_heads, cache, cache, by_rows, by_rows, *[cache] * len(scales))
    return _run(local, mesh, specs, by_heads, (q, keys, values, starts, lengths, *scales))


def flash(
    mesh: Mesh,
    spec: PartitionSpec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    **options: Any,
) -> jax.Array:
    """Return `flash_attention` of whole prompts that are split over a mesh.

    Parameters
    ----------
    spec
        As in `decode`; its split of slots does not matter here.
    options
        Those of `flash_attention`.
    """
    rows, heads = (*spec, None, None)[:2]
    by_heads, by_rows = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    specs = (by_heads, by_heads, by_heads, by_rows, by_rows)
    attend = functools.partial(flash_attention, **options)
    return _run(attend, mesh, specs, by_heads, (q, k, v, starts, lengths))


def _run(function, mesh, in_specs, out_specs, arguments):
    if AxisType.Explicit in mesh.axis_types:
        arguments = [
            jax.sharding.reshard(x, NamedSharding(mesh, spec))
            for x, spec in zip(arguments, in_specs, strict=True)
        ]
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )(*arguments)
