"""The model by hand on a mesh: every device runs the same code on its part, inside `shard_map`.

Heads, features and vocabulary are split over the model axis (and `spare`, where there are fewer KV
heads than devices), the batch over `data`. Devices talk in one way only: they add up partial sums
(`psum`), twice a layer and once for the embedding (Shoeybi et al. 2019, figure 3).
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec

from llama_nb import sharding
from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.model import with_params
from llama_nb.sharding import Layout


def param_specs(config: LlamaConfig, params: Any, layout: Layout) -> Any:
    """Return the `PartitionSpec` of every parameter, as a tree like `params`.

    Raises
    ------
    InputError
        When the mesh doesn't divide the model.
    """
    if layout.strategy != "tp":
        raise InputError(f"by hand the strategy is 'tp', not {layout.strategy!r}.")
    sharding.check(config, layout)
    places = sharding.param_shardings(config, layout.mesh, layout.strategy)

    def spec(path, leaf):
        return places[tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)].spec

    return jax.tree_util.tree_map_with_path(spec, params)


def forward(params: Any, tokens: jax.Array, *, config: LlamaConfig, layout: Layout) -> jax.Array:
    """Return the logits of every next token, as `model.Llama` does.

    Differentiable: `shard_map` knows which sums the backward pass needs.

    Parameters
    ----------
    params
        From `model.params_of`, placed or not.
    tokens
        Shape (B, T).

    Returns
    -------
    jax.Array
        Shape (B, T, V), float32, split over the batch and the vocabulary.

    Raises
    ------
    InputError
        When the mesh doesn't divide the model or the batch.
    """
    axis = _model_axes(layout)

    def local(params, tokens):
        model = with_params(config, params)
        return model.logits(model.hidden(tokens, tp_axis=axis)[0])

    rows = _rows(config, layout, tokens)
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(param_specs(config, params, layout), rows),
        out_specs=PartitionSpec(*rows, None, axis),
    )(params, tokens)


def extend(
    params: Any, cache: KVCache, tokens: jax.Array, *, config: LlamaConfig, layout: Layout
) -> tuple[jax.Array, KVCache]:
    """Add T tokens to every sequence: a prompt to an empty cache, or one token to a full one.

    Parameters
    ----------
    cache
        As `KVCache.create` makes it; KV heads are split over `model`, sequences over `data`. Over
        `spare` it is whole (`pod` splits it there, too).
    tokens
        Shape (B, T).

    Returns
    -------
    tuple
        Logits of each next token, shape (B, V) float32, and the cache, T longer.
    """
    axis = _model_axes(layout)

    def local(params, cache, tokens):
        model = with_params(config, params)
        hidden, cache = model.hidden(tokens, cache, tp_axis=axis)
        cache = dataclasses.replace(cache, length=cache.length + tokens.shape[1])
        return model.logits(hidden[:, -1:])[:, 0], cache

    rows = _rows(config, layout, tokens)
    split = jax.tree.map(lambda x: PartitionSpec("data", "model"), cache)
    split = dataclasses.replace(split, starts=rows, length=PartitionSpec())
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(param_specs(config, params, layout), split, rows),
        out_specs=(PartitionSpec(*rows, axis), split),
    )(params, cache, tokens)


def _model_axes(layout: Layout) -> tuple[str, ...]:
    return tuple(name for name in ("model", "spare") if name in layout.mesh.axis_names)


def _rows(config: LlamaConfig, layout: Layout, tokens: jax.Array) -> PartitionSpec:
    sharding.check(config, layout, batch=tokens.shape[0])
    if "spare" in layout.mesh.axis_names and layout.mesh.shape["model"] < config.num_kv_heads:
        raise InputError(
            f"{config.num_kv_heads} KV heads can't be split into {layout.size('heads')} equal "
            "parts, nor does each get a whole number of devices; choose another mesh."
        )
    return PartitionSpec("data")
