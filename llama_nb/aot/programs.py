"""The steps that can be compiled: their functions, and the shapes of their arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llama_nb import pod, roofline
from llama_nb.aot.shapes import DTYPE, cache_shapes, param_shapes
from llama_nb.config import LlamaConfig
from llama_nb.data.packing import Batch
from llama_nb.errors import InputError
from llama_nb.kernels import matmul
from llama_nb.kernels.choice import Choice
from llama_nb.sampling import Sampling
from llama_nb.session import decode_step, prefill
from llama_nb.sharding import Layout
from llama_nb.topology import Topology
from llama_nb.train import train_step


@dataclasses.dataclass(frozen=True)
class Step:
    """What is to be compiled: a model, where it lies, and how much it does at once.

    Attributes
    ----------
    config, layout, batch, context, quant
        As in `compile_for`.
    choice
        Attention by XLA or by kernels.
    """

    config: LlamaConfig
    layout: Layout
    batch: int
    context: int
    quant: str | None
    choice: Choice

    @property
    def cache_dtype(self) -> Any:
        """Of keys and values."""
        return jnp.int8 if self.quant else DTYPE

    def floor(self, phase: Callable[..., roofline.Step]) -> Callable[[Topology], roofline.Floor]:
        """Return the least time of `roofline.decode` or `roofline.prefill`, given a slice."""
        width = jnp.dtype(self.cache_dtype).itemsize
        step = phase(self.batch, self.context, weights=width, cache=width)
        return lambda where: roofline.floor(self.config, step, where.device, len(where.devices))

    def tokens(self, *shape: int) -> jax.ShapeDtypeStruct:
        """Return integers for every sequence (B,), or for every token (B, T)."""
        axes = ("batch", None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.layout.sharding(shape, axes))


@dataclasses.dataclass(frozen=True)
class Program:
    """A step to be compiled.

    Attributes
    ----------
    function, arguments, options
        A jitted function, the shapes of its arguments, and its static options.
    weights, cache, state
        Which of the arguments are weights, cache and an optimizer's state.
    floor
        The step's least time on a slice.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    weights: Any
    cache: Any
    state: Any
    floor: Callable[[Topology], roofline.Floor]
    tokens: int


def _decode(step: Step) -> Program:
    if step.layout.strategy == "tp":
        return _decode_by_hand(step)
    params = param_shapes(step.config, step.layout, step.quant, DTYPE)
    cache = cache_shapes(step.config, step.layout, step.batch, step.context, step.quant)
    key, numbers = jax.eval_shape(lambda: (jax.random.key(0), Sampling().numbers()))
    return Program(
        decode_step,
        (params, cache, step.tokens(step.batch), key, numbers),
        {
            "config": step.config,
            "greedy": True,
            "layout": step.layout,
            "attention": step.choice,
        },
        params,
        cache,
        (),
        step.floor(roofline.decode),
        step.batch,
    )


def _decode_by_hand(step: Step) -> Program:
    mesh = pod.make_mesh(step.config, step.layout.mesh.devices)
    params = pod.param_shapes(step.config, mesh, step.quant, DTYPE)
    cache = pod.cache_shapes(step.config, mesh, step.batch, step.context, step.cache_dtype)
    kernels = {}
    if step.choice.kind == "pallas":
        kernels = {"attend": functools.partial(pod.kernel, chip=step.choice.chip)}
    if step.quant and matmul.streams(step.choice, step.batch):
        kernels["product"] = matmul.product
    return Program(
        pod.decode_step,
        (params, cache, jax.ShapeDtypeStruct((step.batch,), jnp.int32)),
        {"config": step.config, "mesh": mesh, **kernels},
        params,
        cache,
        (),
        step.floor(roofline.decode),
        step.batch,
    )


def _prefill(step: Step) -> Program:
    params = param_shapes(step.config, step.layout, step.quant, DTYPE)
    length = jax.ShapeDtypeStruct((), jnp.int32)
    return Program(
        prefill,
        (params, step.tokens(step.batch, step.context), step.tokens(step.batch), length),
        {
            "config": step.config,
            "capacity": step.context,
            "dtype": step.cache_dtype,
            "layout": step.layout,
            "attention": step.choice,
        },
        params,
        cache_shapes(step.config, step.layout, step.batch, step.context, step.quant),
        (),
        step.floor(roofline.prefill),
        step.batch * step.context,
    )


def _train(step: Step) -> Program:
    if step.quant is not None:
        raise InputError("training is in float32 and bfloat16; leave --quant out.")
    params = param_shapes(step.config, step.layout, None, jnp.float32)
    optimizer = optax.adamw(1e-4)
    state = jax.eval_shape(optimizer.init, params)
    # Moments lie as the weights do.
    state = optax.tree_map_params(
        optimizer,
        lambda leaf, like: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding),
        state,
        params,
    )
    return Program(
        train_step,
        (params, state, Batch(*[step.tokens(step.batch, step.context)] * 2)),
        {"config": step.config, "optimizer": optimizer, "layout": step.layout},
        params,
        (),
        state,
        lambda where: roofline.train_floor(
            step.config, step.batch, step.context, where.device, len(where.devices)
        ),
        step.batch * step.context,
    )


PROGRAMS: dict[str, Callable[[Step], Program]] = {
    "decode": _decode,
    "prefill": _prefill,
    "train": _train,
}
