"""Which device keeps which part: from a parameter's logical axes to a mesh.

A strategy is a small table from logical axes (`vocab embed heads kv_heads head_dim ffn`) to mesh
axes. A dimension that its mesh axes don't divide stays whole.
"""

import math
import re
from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb import compat
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.model import Llama

AXES = ("data", "model")

_TP = {"vocab": "model", "heads": "model", "kv_heads": "model", "ffn": "model"}
STRATEGIES: dict[str, dict[str, str | tuple[str, ...]]] = {
    "replicated": {},
    "tp": _TP,
    "fsdp": {"embed": ("data", "model")},
    # Every weight is split over all devices: heads and features over one axis, D over the other.
    "2d": {**_TP, "embed": "data"},
}


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


def make_mesh(shape: tuple[int, ...]) -> Mesh:
    """Return a mesh with axes (data, model) over this process's view of the devices.

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
    devices = jax.devices()[:wanted]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def spec(shape: tuple[int, ...], axes: tuple[str, ...], strategy: str, mesh: Mesh) -> PartitionSpec:
    """Return how an array with these logical axes is split.

    Parameters
    ----------
    shape, axes
        One logical name per dimension.
    strategy
        A key of `STRATEGIES`.

    Raises
    ------
    InputError
        For an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r} is unknown; known: {', '.join(STRATEGIES)}.")
    table = STRATEGIES[strategy]
    parts = []
    for size, axis in zip(shape, axes, strict=True):
        names = table.get(axis)
        count = math.prod(
            mesh.shape[n] for n in ([names] if isinstance(names, str) else names or ())
        )
        parts.append(names if names and size % count == 0 else None)
    return PartitionSpec(*parts)


def param_shardings(
    config: LlamaConfig, mesh: Mesh, strategy: str
) -> dict[tuple[str | int, ...], NamedSharding]:
    """Return the sharding of every parameter, by its path (`checkpoint.names.Entry.path`)."""
    shardings = {}

    def visit(node: Any, path: tuple[str | int, ...]) -> None:
        if isinstance(node, nnx.Variable):
            parts = spec(compat.value(node).shape, node.axes, strategy, mesh)
            shardings[path] = NamedSharding(mesh, parts)
        else:
            for key, child in node.items():
                visit(child, (*path, key))

    visit(nnx.state(Llama(config), nnx.Param), ())
    return shardings
