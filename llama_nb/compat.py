"""The only place that knows that JAX and Flax changed between supported versions."""

from typing import Any

from flax import nnx


def module_list(modules: list[nnx.Module]) -> Any:
    """Return a container of submodules: `nnx.List` since Flax 0.12, a plain list before."""
    return nnx.List(modules) if hasattr(nnx, "List") else modules


def value(variable: nnx.Variable) -> Any:
    """Return what an NNX variable holds; `.value` is deprecated since Flax 0.12."""
    return variable.get_value() if hasattr(variable, "get_value") else variable.value
