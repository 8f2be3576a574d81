"""Random weights and caches for eight_b.py, drawn on the device leaf by leaf."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.model import Llama, params_of
from llama_nb.quantize import quantize

STD = 0.02  # of the weights, as a trained model's
PROBE = 16  # tokens whose logits all parties compare


def shapes_of(config: LlamaConfig, quant: str) -> dict[str, Any]:
    """Return the parameters as shapes: bfloat16, or int8 matrices with float32 scales."""
    shapes = params_of(Llama(config, dtype=jnp.bfloat16))
    return jax.eval_shape(quantize, shapes) if quant == "int8" else shapes


def bytes_of(tree: Any) -> int:
    """Return the bytes of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def draw(seed: int, shape: tuple[int, ...], dtype: Any, what: str) -> jax.Array:
    """Return random weights: where JAX computes, in the dtype that stays."""
    if what == "gain":
        return jnp.ones(shape, dtype)
    if what == "scale":  # 256 steps, evenly likely, have a deviation of 74.
        return jnp.full(shape, STD / 74, dtype)
    key = jax.random.key(seed)
    if dtype == jnp.int8:
        return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)
    return jax.random.normal(key, shape, dtype) * jnp.asarray(STD, dtype)


def filled(shapes: Any) -> Any:
    """Return random arrays for shapes: the same ones in every process."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    return tree.unflatten(
        draw(seed, leaf.shape, leaf.dtype, kind(path, leaf))
        for seed, (path, leaf) in enumerate(leaves)
    )


def kind(path: tuple, leaf: Any) -> str:
    """Return what a leaf is: a weight, a gain of a norm, or a scale of int8."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    if any("scale" in name for name in names):
        return "scale"
    return "gain" if leaf.ndim == 1 else "weight"


def random_cache(config: LlamaConfig, batch: int, slots: int, length: int, quant: str) -> KVCache:
    """Return a cache whose first `length` slots, and the others, hold random numbers."""
    dtype = jnp.int8 if quant == "int8" else jnp.bfloat16
    shapes = jax.eval_shape(lambda: KVCache.create(config, batch, slots, dtype))
    numbers = {"starts": jnp.zeros((batch,), jnp.int32), "length": jnp.int32(length)}
    parts = {f.name: getattr(shapes, f.name) for f in dataclasses.fields(shapes)}
    random = filled({name: part for name, part in parts.items() if name not in numbers})
    return KVCache(**random, **numbers)


def prompt(config: LlamaConfig, length: int) -> list[int]:
    """Return the same random tokens to everyone; not 0, which is padding to some."""
    return np.random.default_rng(0).integers(1, config.vocab_size, length).tolist()


def room() -> float:
    """Return the bytes that JAX's device has free, or this machine."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if "MemAvailable" in line) * 1024.0
