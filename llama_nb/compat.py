"""The only place that knows that JAX and Flax changed between supported versions."""

from typing import Any

import jax
from flax import nnx

# XLA's CPU backend of jax 0.7.2 widens an int8 matrix element by element where one row meets it.
ONE_ROW_IS_SLOW = jax.__version_info__ < (0, 10)


def module_list(modules: list[nnx.Module]) -> Any:
    """Return a container of submodules: `nnx.List` since Flax 0.12, a plain list before."""
    return nnx.List(modules) if hasattr(nnx, "List") else modules


def value(variable: nnx.Variable) -> Any:
    """Return what an NNX variable holds; `.value` is deprecated since Flax 0.12."""
    return variable.get_value() if hasattr(variable, "get_value") else variable.value
