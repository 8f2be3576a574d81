"""One greedy step of decoding, on every chip at once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from llama_nb import layers, packed
from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.kernels.decode import block_slots
from llama_nb.kernels.decode_xla import Part, attention, one
from llama_nb.packed import Packed
from llama_nb.pod.layout import AXES, cache_shardings, check, shardings

_ARRAYS = ("keys", "values", "key_scales", "value_scales")  # what a cache has of each layer


def kernel(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *scales: jax.Array,
    own: tuple[jax.Array, ...] = (),
    chip: str | None = None,
    interpret: Any = False,
) -> Part:
    """Attend as `kernels.decode_xla.attention` does, and read filled blocks only.

    Parameters
    ----------
    chip, interpret
        As in `kernels.decode_attention`.
    """
    from llama_nb.kernels import decode_tpu

    K, S, H = keys.shape[1:]
    # With its own position a sequence's attention is complete, and nobody will need more digits.
    out, lse = decode_tpu.decode_attention(
        q,
        keys,
        values,
        starts,
        lengths,
        scales,
        scale=1.0,
        block=block_slots(K, S, H, keys.dtype.itemsize, chip),
        own=own,
        dtype=q.dtype if own else jnp.float32,
        interpret=interpret,
    )
    return Part(out, lse[..., None], jnp.ones_like(lse)[..., None])


@functools.partial(
    jax.jit, static_argnames=("config", "mesh", "attend", "product"), donate_argnames=("cache",)
)
def decode_step(
    params: dict[str, Any],
    cache: KVCache,
    tokens: jax.Array,
    *,
    config: LlamaConfig,
    mesh: Mesh,
    attend: Callable[..., Part] = attention,
    product: packed.Product | None = None,
) -> tuple[jax.Array, KVCache]:
    """Add one token to every sequence and return the likeliest next.

    Parameters
    ----------
    params
        From `fuse`, placed by `shardings`.
    cache
        Placed by `cache_shardings`; written in place.
    tokens
        Shape (B,), int32.
    attend
        Static: `kernels.decode_xla.attention`, or a kernel that does the same (`kernel`).
    product
        Static: what multiplies int8 matrices in XLA's place (`kernels.matmul.product`).

    Returns
    -------
    tuple
        Next tokens, shape (B,) int32, and the cache, one longer.

    Raises
    ------
    InputError
        When the mesh doesn't divide the model, nor `spare` the sequences or slots.
    """
    check(config, mesh)
    specs = [
        jax.tree.map(lambda place: place.spec, places)
        for places in (shardings(params, mesh), cache_shardings(cache, mesh))
    ]
    step = functools.partial(_local_step, config=config, mesh=mesh, attend=attend, product=product)
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(*specs, PartitionSpec()),
        out_specs=(PartitionSpec(), specs[1]),
        check_vma=False,
    )(params, cache, tokens)


def _local_step(params, cache, tokens, *, config, mesh, attend, product):
    """Do one chip's part of a step."""
    B, H, G = tokens.shape[0], config.head_dim, config.group_size
    K, spare = config.num_kv_heads // mesh.shape["model"], mesh.shape["spare"]
    S, rows = cache.capacity, cache.starts.shape[0]  # this chip's slots and sequences
    by_slots = rows == B and spare > 1
    mine = lax.axis_index("spare")
    first = mine * S if by_slots else 0
    starts, lengths = (
        jnp.clip(x - first, 0, S) for x in (cache.starts, jnp.broadcast_to(cache.length, rows))
    )
    turn = _turns(config, cache.positions(1))

    def norm(x, gain):
        return layers.rms_norm(x, gain, config.norm_eps)

    dot = functools.partial(_dot, product=product)

    # A matrix unit multiplies eight rows as fast as one, and one row not as a matrix at all.
    padding = max(0, 8 - B)
    x = _embed(params, jnp.pad(tokens, (0, padding)))
    new = []
    for index, block in enumerate(params["layers"]):
        qkv = dot(norm(x, block["attn_norm"]), block["qkv"])
        qkv = lax.all_gather(qkv, "spare", axis=1, tiled=True)
        qkv = lax.dynamic_slice_in_dim(qkv, 0 if by_slots else mine * rows, rows)
        qkv = turn(qkv.reshape(rows, K, G + 2, H))
        q, kv = qkv[:, :, :G], qkv[:, :, G:]

        arrays = (getattr(cache, name) for name in _ARRAYS)
        keys, values, *scales = (array[index] for array in arrays if array)
        kv, scale = packed.to_int8(kv, axis=-1) if cache.key_scales else (kv, jnp.float32([1]))
        k, v = jnp.split(kv * scale, 2, axis=2)  # as the next step will read them
        # Cut here, since cutting all layers' at the end would keep them in the chip's way.
        parts = (kv, scale[..., 0]) if cache.key_scales else (kv,)
        new.append([part[:, :, at : at + 1] for part in parts for at in (0, 1)])
        if by_slots:
            part = attend(q, keys, values, starts, lengths, *scales)
            part = part.join_over("spare").join(one(q, k, v))
        else:
            part = attend(q, keys, values, starts, lengths, *scales, own=(k, v))
        y = (part.mixed / part.total).astype(x.dtype).reshape(rows, -1)
        y = _own_columns(y, by_slots, spare)

        x = x + lax.psum(dot(jnp.pad(y, ((0, padding), (0, 0))), block["o"]), AXES)
        gate, up = jnp.split(dot(norm(x, block["mlp_norm"]), block["gate_up"]), 2, axis=1)
        x = x + lax.psum(dot(layers.swiglu(gate, up), block["down"]), AXES)
    head = params["embed" if config.tied else "lm_head"]
    token = _likeliest(norm(x, params["norm"]), head, product)[:B]
    # Only now: a cache that changes before it is read can't be fetched ahead.
    x, new = lax.optimization_barrier((x, new))
    return token, _write(cache, new, first if by_slots else None)


def _own_columns(y: jax.Array, by_slots: bool, spare: int) -> jax.Array:
    """Turn attention's outputs into all sequences' inputs to this chip's rows of `o`."""
    if spare == 1:
        return y
    if not by_slots:
        return lax.all_to_all(y, "spare", 1, 0, tiled=True)
    width = y.shape[1] // spare
    return lax.dynamic_slice_in_dim(y, lax.axis_index("spare") * width, width, 1)


def _write(cache: KVCache, new: Sequence[Sequence[jax.Array]], first: jax.Array | None) -> KVCache:
    """Put every layer's new arrays (B, K, 1, ...), two or all of `_ARRAYS`, into the next slot.

    Where slots are split, `first` is this chip's first; if the next one is another chip's, what is
    there stays.
    """
    slot = cache.length
    if first is not None:
        slot = jnp.clip(cache.length - first, 0, cache.capacity - 1)

    def put(old, part):
        corner, part = (0, 0, slot, 0)[: old.ndim], part.astype(old.dtype)
        if first is not None:
            there = lax.dynamic_slice(old, corner, part.shape)
            part = jnp.where(slot + first == cache.length, part, there)
        return lax.dynamic_update_slice(old, part, corner)

    fields = {
        name: tuple(map(put, getattr(cache, name), parts))
        for name, parts in zip(_ARRAYS, zip(*new, strict=True), strict=False)
    }
    return dataclasses.replace(cache, **fields, length=cache.length + 1)


def _dot(x: jax.Array, weight: Packed, product: packed.Product | None) -> jax.Array:
    """Multiply (B, I) with (I, O): the sum in float32, scaled once, in the dtype of x."""
    if product is not None:
        return packed.project(x, weight, 1, product)
    y = jnp.dot(x, weight.values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y if weight.scale is None else y * weight.scale).astype(x.dtype)


def _turns(config: LlamaConfig, positions: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return RoPE for (B, K, G + 2, H): queries, which it also divides by `sqrt(H)`, key and value.

    As products: `x * cos + (x @ half) * sin`, where `half` moves each feature to its partner's
    place. One small matrix is cheaper than cutting heads in two and joining them again.
    """
    H = config.head_dim
    frequencies = layers.rope_frequencies(H, config.rope_theta, config.rope_scaling)
    cos, sin = layers.rope_angles(positions, frequencies)  # (B, 1, 1, H/2)

    def table(key, value):
        heads = [key * H**-0.5] * config.group_size + [key, value]
        return jnp.tile(jnp.concatenate(heads, axis=2), 2)

    cos, sin = table(cos, jnp.ones_like(cos)), table(sin, jnp.zeros_like(sin))
    half = np.roll(np.eye(H, dtype=np.float32), H // 2, axis=1)
    half[H // 2 :] *= -1

    def turn(x: jax.Array) -> jax.Array:
        partner = jnp.dot(x, half.astype(x.dtype), preferred_element_type=jnp.float32)
        return (x.astype(jnp.float32) * cos + partner * sin).astype(x.dtype)

    return turn


def _embed(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Look up the tokens whose rows this chip has; the chips' parts add up to (B, D)."""
    table = params["embed"]
    rows = tokens - lax.axis_index(AXES) * table.shape[0]
    here = (rows >= 0) & (rows < table.shape[0])
    x = packed.take(table, jnp.where(here, rows, 0), params["norm"].dtype)
    return lax.psum(jnp.where(here[:, None], x, 0), AXES)


def _likeliest(x: jax.Array, head: Packed, product: packed.Product | None) -> jax.Array:
    """Return the argmax over the vocabulary of (B, D): each chip's best, then the best of those."""
    logits = packed.unembed(x, head, product)
    best, token = logits.max(axis=1), logits.argmax(axis=1).astype(jnp.int32)
    token = token + lax.axis_index(AXES) * head.shape[0]
    best, token = lax.all_gather((best, token), AXES)  # (chips, B)
    return jnp.take_along_axis(token, best.argmax(axis=0)[None], axis=0)[0]
