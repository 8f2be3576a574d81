"""What a run starts from: random weights, or ones that are there, divided and laid on a mesh."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from llama_nb import sharding
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.lora import LowRank
from llama_nb.model import Llama, params_of
from llama_nb.packed import Packed
from llama_nb.sharding import Layout
from llama_nb.train.tuning import Kind, divide


def begin(
    config: LlamaConfig, start: Any, tune: Kind, seed: int, layout: Layout | None
) -> tuple[Any, Any]:
    """Return what is trained and what is not (`tuning.divide`), each where it belongs.

    Parameters
    ----------
    start
        Parameters that `check` lets pass, or None for random ones.
    """
    parts = divide(random(config, seed, layout) if start is None else start, tune, seed)
    if layout is None:
        return parts
    places = sharding.param_shardings(config, layout.mesh, layout.strategy)

    def put(path: Any, weight: Any) -> Any:
        return _put(weight, places[_key(path)])

    return tuple(jax.tree_util.tree_map_with_path(put, p, is_leaf=_is_weight) for p in parts)


def random(config: LlamaConfig, seed: int, layout: Layout | None) -> Any:
    """Return random weights, each made where it belongs."""

    def make() -> Any:
        return params_of(Llama(config, rngs=nnx.Rngs(seed)))

    if layout is None:
        return jax.jit(make)()
    places = sharding.param_shardings(config, layout.mesh, layout.strategy)
    shapes = jax.eval_shape(make)
    wanted = jax.tree_util.tree_map_with_path(lambda path, _: places[_key(path)], shapes)
    return jax.jit(make, out_shardings=wanted)()


def check(config: LlamaConfig, start: Any, tune: Kind) -> None:
    """Refuse weights of another config, or that can't be trained so, before anything is done.

    Raises
    ------
    InputError
        With the first weight that differs.
    """
    fresh = params_of(Llama(config))
    expected, found = _shapes(fresh), _shapes(fresh if start is None else start)
    for path in (*expected, *found):
        if expected.get(path) != found.get(path):
            raise InputError(
                f"the weights to start from are of another config: {'.'.join(map(str, path))} is "
                f"{found.get(path, 'not there')}, and {expected.get(path, 'nothing')} is expected."
            )
    jax.eval_shape(lambda params: divide(params, tune), fresh if start is None else start)


def fingerprint(params: Any) -> str:
    """Return what weights share only if all their bits do, wherever they lie."""
    sums = [int(_bits(leaf)) for leaf in jax.tree.leaves(params)]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


@jax.jit
def _bits(x: jax.Array) -> jax.Array:
    # A sum of integers doesn't depend on its order, so the mesh makes no difference.
    numbers = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    numbers = numbers.astype(jnp.uint32).reshape(-1)
    mixed = (numbers ^ jnp.arange(numbers.size, dtype=jnp.uint32)) * jnp.uint32(2654435761)
    return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, LowRank | Packed)


def _key(path: Any) -> tuple[str | int, ...]:
    return tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)


def _shapes(params: Any) -> dict[tuple[str | int, ...], tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    return {_key(path): leaf.shape for path, leaf in leaves}


def _put(weight: Any, place: NamedSharding) -> Any:
    """Lay a weight, or the parts of it that are there, as the whole one lies."""

    def at(x: Any, *parts: Any) -> Any:
        where = NamedSharding(place.mesh, PartitionSpec(*parts))
        return None if x is None else jax.device_put(x, where)

    if isinstance(weight, LowRank):
        if weight.a is None:
            return dataclasses.replace(weight, base=_put(weight.base, place))
        cut = weight.a.ndim - 1  # `a` is split as the inputs are, `b` as the outputs.
        a, b = at(weight.a, *place.spec[:cut], None), at(weight.b, None, *place.spec[cut:])
        return dataclasses.replace(weight, a=a, b=b)
    if isinstance(weight, Packed):
        spec = place.spec
        if weight.scale is not None:  # One per output, or (V, 1).
            cut = weight.values.ndim - weight.scale.ndim
            spec = spec[cut:] if cut else (spec[0], None)
        return Packed(at(weight.values, *place.spec), at(weight.scale, *spec))
    return at(weight, *place.spec)
