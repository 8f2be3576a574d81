"""Who keeps what: the mesh, matrices side by side, and where parameters and cache lie."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of
from llama_nb.packed import Packed
from llama_nb.quantize import quantize

AXES = ("model", "spare")


def make_mesh(config: LlamaConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of some devices: as many parts of the KV heads as divide, the rest spare."""
    devices = np.asarray(jax.devices() if devices is None else devices).reshape(-1)
    model = math.gcd(config.num_kv_heads, devices.size)
    return Mesh(devices.reshape(model, -1), AXES, axis_types=(AxisType.Auto,) * 2)


def cache_split(batch: int, capacity: int, spare: int) -> str:
    """Return what the spare axis splits of the cache: "batch" where it divides, else "slots".

    Split sequences need no more than to be sent where they belong; split slots make partial
    softmaxes that must be merged, but serve a single long sequence.

    Raises
    ------
    InputError
        When neither divides.
    """
    if batch % spare == 0:
        return "batch"
    if capacity % spare == 0:
        return "slots"
    raise InputError(
        f"neither {batch} sequences nor {capacity} slots can be split into {spare} equal parts."
    )


def check(config: LlamaConfig, mesh: Mesh) -> None:
    """Raise `InputError` unless the mesh divides the model."""
    chips, heads = mesh.size, config.num_heads + 2 * config.num_kv_heads
    for size, what, parts in (
        (config.num_kv_heads, "KV heads", mesh.shape["model"]),
        (config.num_heads * config.head_dim, "features of the query heads", chips),
        (heads * config.head_dim, "features of queries, keys and values", chips),
        (config.ffn_dim, "feed-forward features", chips),
        (config.vocab_size, "entries of the vocabulary", chips),
    ):
        if size % parts:
            raise InputError(f"{size} {what} can't be split into {parts} equal parts.")


def fuse(params: dict[str, Any], chips: int) -> dict[str, Any]:
    """Return parameters with the matrices that share an input side by side.

    Columns are in the order in which an even split gives each chip what belongs together: a KV
    head's queries, its key and its value; a chip's gates and then its ups.

    Parameters
    ----------
    params
        From `quantize.quantize`, or as they are in bfloat16.
    chips
        The size of the mesh.
    """

    def join(weights: Sequence[Packed], axis: int, *split: int) -> Packed:
        """Concatenate outputs, seen as `split`, along one axis of `split`."""
        values = [w.values.reshape(len(w.values), *split) for w in weights]
        values = jnp.concatenate(values, axis + 1).reshape(len(values[0]), -1)
        if weights[0].scale is None:
            return Packed(values)
        scales = [w.scale.reshape(split) for w in weights]
        return Packed(values, jnp.concatenate(scales, axis).reshape(-1))

    def block(old: dict[str, Any]) -> dict[str, Any]:
        attn, mlp = (jax.tree.map(_kept, old[k], is_leaf=_is_packed) for k in ("attn", "mlp"))
        K, H = attn["k_proj"].shape[1:]
        o = attn["o_proj"]
        return {
            "attn_norm": old["attn_norm"],
            "qkv": join([attn["q_proj"], attn["k_proj"], attn["v_proj"]], 1, K, -1, H),
            "o": dataclasses.replace(o, values=o.values.reshape(-1, o.shape[-1])),
            "mlp_norm": old["mlp_norm"],
            "gate_up": join([mlp["gate_proj"], mlp["up_proj"]], 1, chips, -1),
            "down": mlp["down_proj"],
        }

    blocks = [block(params["layers"][index]) for index in range(len(params["layers"]))]
    ends = {name: _kept(params[name]) for name in ("embed", "lm_head") if name in params}
    return {**params, **ends, "layers": blocks}


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _kept(weight: Any) -> Packed:
    """Return a weight as `Packed`; one that is not quantized has no scale."""
    return weight if _is_packed(weight) else Packed(weight)


def param_shapes(
    config: LlamaConfig, mesh: Mesh, quant: str | None = "int8", dtype: Any = jnp.bfloat16
) -> dict[str, Any]:
    """Return the shapes and shardings of `fuse`'s parameters: enough to compile for.

    Parameters
    ----------
    quant
        "int8", or None for weights of `dtype`.
    dtype
        Of the norms' gains, which is that of the activations.
    """
    check(config, mesh)
    kept = quantize if quant else lambda params: params
    shapes = jax.eval_shape(
        lambda params: fuse(kept(params), mesh.size), params_of(Llama(config, dtype=dtype))
    )
    return _placed_shapes(shapes, shardings(shapes, mesh))


def cache_shapes(
    config: LlamaConfig, mesh: Mesh, batch: int, capacity: int, dtype: Any = jnp.int8
) -> KVCache:
    """Return the shapes and shardings of a cache."""
    shapes = jax.eval_shape(lambda: KVCache.create(config, batch, capacity, dtype))
    return _placed_shapes(shapes, cache_shardings(shapes, mesh))


def _placed_shapes(shapes: Any, places: Any) -> Any:
    def shape(x, place):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return jax.tree.map(shape, shapes, places)


def shardings(params: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Return where each of `fuse`'s parameters lies, for `jax.device_put`."""
    rows, columns = PartitionSpec(AXES), PartitionSpec(None, AXES)
    whole = PartitionSpec()
    of_name = {"embed": (rows, rows), "lm_head": (rows, rows), "o": (rows, whole)}
    of_name |= {"down": (rows, whole), "qkv": (columns, rows), "gate_up": (columns, rows)}

    def place(node: Any, name: str) -> Any:
        if isinstance(node, dict):
            return {key: place(child, key) for key, child in node.items()}
        if isinstance(node, list):
            return [place(child, name) for child in node]
        if isinstance(node, Packed):
            values, scale = (NamedSharding(mesh, spec) for spec in of_name[name])
            return Packed(values, None if node.scale is None else scale)
        return NamedSharding(mesh, whole)

    return place(params, "")


def cache_shardings(cache: KVCache, mesh: Mesh) -> KVCache:
    """Return where each part of a cache lies, for `jax.device_put`."""
    batch, _, capacity, _ = cache.keys[0].shape
    if cache_split(batch, capacity, mesh.shape["spare"]) == "batch":
        rows, spec = PartitionSpec("spare"), PartitionSpec("spare", "model")
    else:
        rows, spec = PartitionSpec(), PartitionSpec(None, "model", "spare")
    specs = dataclasses.replace(
        jax.tree.map(lambda _: spec, cache), starts=rows, length=PartitionSpec()
    )
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
