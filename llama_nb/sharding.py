"""Which device keeps which part: from logical axes to the axes of a mesh.

Every dimension of a weight, of the cache and of the activations has a logical name. A strategy is
a small table from those names to mesh axes; a `Layout` is a strategy on a mesh.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb import compat
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.model import Llama

AXES = ("data", "model")

# A model axis longer than there are KV heads is two axes: `model`, which splits them, and `spare`.
_ALL, _MODEL = ("data", "model", "spare"), ("model", "spare")
# What the spare axis splits of the cache: sequences where they divide, otherwise their slots.
_CACHE = {"cache_batch": ("data", "spare"), "kv_heads": ("model",), "slots": ("spare",)}
_TP = {"vocab": _MODEL, "heads": _MODEL, "ffn": _MODEL, **_CACHE}

# Of weights: vocab, embed (D), heads, kv_heads, head_dim, ffn. Of activations: batch, stream (D
# again, as the residual stream carries it). Of the cache: cache_batch, kv_heads, slots, head_dim.
STRATEGIES: dict[str, dict[str, tuple[str, ...]]] = {
    "replicated": {},
    # Data parallelism: a copy of the model each, and a part of the batch.
    "dp": {"batch": _ALL, "cache_batch": _ALL},
    # Tensor parallelism: heads, features and vocabulary are split; `data` splits the batch.
    "tp": {**_TP, "batch": ("data",)},
    # In two dimensions: D is split too, in weights and in the stream, so all share each sequence.
    "2d": {**_TP, "cache_batch": ("spare",), "embed": ("data",), "stream": ("data",)},
    # Fully sharded data parallelism: dp, with D of the weights split until they are needed.
    "fsdp": {"embed": _ALL, "batch": _ALL, "cache_batch": _ALL},
    # Both: weights are split over all devices, gathered over `data`, and multiplied in parts.
    "fsdp_tp": {**_TP, "embed": ("data",), "batch": ("data",)},
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A strategy on a mesh, as `layout` makes it.

    Hashable, so that it can be a static argument of a jitted function.
    """

    mesh: Mesh
    strategy: str

    def spec(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
        """Return how an array whose dimensions have these logical names is split.

        Each dimension takes the mesh axes that the table gives it, as far as they divide it and no
        earlier dimension has them; what is left over stays whole.
        """
        table, taken, parts = STRATEGIES[self.strategy], set(), []
        for size, axis in zip(shape, axes, strict=True):
            names: list[str] = []
            for name in table.get(axis, ()):
                length = self.mesh.shape.get(name, 1)
                if length > 1 and name not in taken:
                    if size % (length * math.prod(self.mesh.shape[n] for n in names)):
                        break
                    names.append(name)
            taken.update(names)
            parts.append(tuple(names) if len(names) > 1 else names[0] if names else None)
        return PartitionSpec(*parts)

    def sharding(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        """Return `spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(shape, axes))

    def place(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Return an array (of a trace, too) split as its logical axes ask for."""
        wanted = self.sharding(x.shape, axes)
        if self.explicit:
            return jax.sharding.reshard(x, wanted)
        return jax.lax.with_sharding_constraint(x, wanted)

    def size(self, axis: str) -> int:
        """Return the number of parts in which the strategy wants a logical axis."""
        names = STRATEGIES[self.strategy].get(axis, ())
        return math.prod(self.mesh.shape.get(name, 1) for name in names)

    @property
    def explicit(self) -> bool:
        """Whether the mesh's axes are Explicit: part of every array's type."""
        return AxisType.Explicit in self.mesh.axis_types


def mesh_shape(text: str) -> tuple[int, ...]:
    """Return (2, 4) for "2x4".

    Raises
    ------
    InputError
        For anything but two sizes above 0.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise InputError(f"mesh {text!r} is not DATAxMODEL, for instance 2x4 for eight devices.")
    return tuple(int(size) for size in text.split("x"))


def make_mesh(shape: tuple[int, ...], *, explicit: bool = False) -> Mesh:
    """Return a mesh with axes (data, model) over this process's view of the devices.

    Parameters
    ----------
    shape
        Sizes of the two axes.
    explicit
        Make shardings part of every array's type, instead of leaving them to the compiler (Auto).

    Raises
    ------
    InputError
        When there are fewer devices.
    """
    wanted, there = math.prod(shape), jax.device_count()
    if wanted > there:
        raise InputError(
            f"a mesh of {'x'.join(map(str, shape))} needs {wanted} devices and JAX sees {there}; "
            f"on CPU, jax.config.update('jax_num_cpu_devices', {wanted}) before anything else "
            "makes as many virtual ones."
        )
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return jax.make_mesh(shape, AXES, axis_types=(kind,) * 2, devices=jax.devices()[:wanted])


def layout(config: LlamaConfig, mesh: Mesh, strategy: str) -> Layout:
    """Return a strategy on a mesh, for one model.

    Where the model axis is longer than the KV heads can fill, it is seen as two axes, `model` and
    `spare`, over the same devices.

    Raises
    ------
    InputError
        For an unknown strategy, or a mesh that has no axis `data` and `model`.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r} is unknown; known: {', '.join(STRATEGIES)}.")
    if not set(AXES) <= set(mesh.axis_names):
        raise InputError(f"a mesh needs axes data and model; this one has {mesh.axis_names}.")
    explicit = AxisType.Explicit in mesh.axis_types
    if explicit and strategy.startswith("fsdp"):
        raise InputError(
            f"strategy {strategy!r} gathers weights, which Explicit axes leave to you."
        )
    size = mesh.shape["model"]
    heads = math.gcd(size, config.num_kv_heads)
    if heads < size and explicit:
        raise InputError(
            f"{config.num_kv_heads} KV heads can't be split into {size} equal parts on Explicit "
            "axes; choose a mesh whose model axis divides them, or Auto axes."
        )
    if heads < size and "spare" not in mesh.axis_names:
        devices = np.reshape(mesh.devices, (mesh.shape["data"], heads, size // heads))
        mesh = Mesh(devices, _ALL, axis_types=(*mesh.axis_types, mesh.axis_types[-1]))
    return Layout(mesh, strategy)


def check(
    config: LlamaConfig, layout: Layout, batch: int | None = None, *, heads: bool = True
) -> None:
    """Refuse a mesh that doesn't divide the model.

    Parameters
    ----------
    batch
        Sequences, where they must divide as well.
    heads
        Whether query heads must divide, too. `jit` can do without: it keeps attention whole.

    Raises
    ------
    InputError
        When heads, features, the vocabulary, D or the batch can't be cut into equal parts.
    """
    sizes = {
        **({"heads": ("query heads", config.num_heads)} if heads else {}),
        "kv_heads": ("KV heads", config.num_kv_heads),
        "ffn": ("feed-forward features", config.ffn_dim),
        "vocab": ("entries of the vocabulary", config.vocab_size),
        "embed": ("features of the stream", config.embed_dim),
        **({} if batch is None else {"batch": ("sequences of the batch", batch)}),
    }
    for axis, (what, size) in sizes.items():
        parts = layout.size(axis)
        if size % parts:
            raise InputError(
                f"{size} {what} can't be split into {parts} equal parts, as strategy "
                f"{layout.strategy!r} asks on a mesh of {_describe(layout.mesh)}; "
                f"choose a mesh whose axes divide {size}, or another strategy."
            )


def _describe(mesh: Mesh) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.shape.items())


def param_shardings(
    config: LlamaConfig, mesh: Mesh, strategy: str
) -> dict[tuple[str | int, ...], NamedSharding]:
    """Return the sharding of every parameter, by its path (`checkpoint.names.Entry.path`)."""
    shardings, place = {}, layout(config, mesh, strategy)

    def visit(node: Any, path: tuple[str | int, ...]) -> None:
        if isinstance(node, nnx.Variable):
            shardings[path] = place.sharding(compat.value(node).shape, node.axes)
        else:
            for key, child in node.items():
                visit(child, (*path, key))

    visit(nnx.state(Llama(config), nnx.Param), ())
    return shardings
