"""Weights and caches as shapes that know where they lie; nothing is allocated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb import cache as caches
from llama_nb import sharding
from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.model import Llama, params_of
from llama_nb.quantize import SHARED_AXES, quantize
from llama_nb.sharding import Layout
from llama_nb.topology import Topology

DTYPE = jnp.bfloat16  # of weights and cache that are not int8, and of activations


def mesh(where: Topology, strategy: str) -> Mesh:
    """Return the mesh (data, model) of a slice: all devices on the axis that a strategy uses most.

    Strategies with both axes get the squarest mesh, `model` the longer side.
    """
    count = len(where.devices)
    if strategy in ("2d", "fsdp_tp"):
        data = max(n for n in range(1, count + 1) if count % n == 0 and n * n <= count)
    else:
        data = 1 if strategy == "tp" else count
    devices = np.reshape(np.array(where.devices, dtype=object), (data, count // data))
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def param_shapes(config: LlamaConfig, layout: Layout, quant: str | None, dtype: Any) -> Any:
    """Return the parameters as shapes that know where they lie; nothing is allocated.

    Parameters
    ----------
    quant
        As in `compile_for`.
    dtype
        Of the weights, where they are not int8, and of the norms.
    """
    shapes = params_of(Llama(config, dtype=dtype))
    if quant is not None:
        shapes = jax.eval_shape(quantize, shapes)
    places = sharding.param_shardings(config, layout.mesh, layout.strategy)

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        attribute = keys.pop() if keys[-1] in ("values", "scale") else "values"
        spec = [*places[tuple(keys)].spec, *[None] * 3][: len(places[tuple(keys)].spec)]
        if attribute == "scale":  # One per output.
            shared = SHARED_AXES[keys[-1]]
            whole = shared[0] != 0  # (V, 1) keeps its axes.
            spec = [
                None if axis in shared else part
                for axis, part in enumerate(spec)
                if whole or axis not in shared
            ]
        place = NamedSharding(layout.mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree_util.tree_map_with_path(placed, shapes)


def cache_shapes(
    config: LlamaConfig, layout: Layout, batch: int, context: int, quant: str | None
) -> KVCache:
    """Return a cache as shapes that know where they lie."""
    dtype = jnp.int8 if quant else DTYPE
    shapes = jax.eval_shape(lambda: KVCache.create(config, batch, context, dtype))

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = caches.AXES[: leaf.ndim] if leaf.ndim > 1 else (None,) * leaf.ndim
        place = layout.sharding(leaf.shape, axes)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(placed, shapes)
