"""The only place that knows that JAX and Flax changed between supported versions."""

from typing import Any

import jax
from flax import nnx

# XLA's CPU backend of jax 0.7.2 widens an int8 matrix element by element where one row meets it.
ONE_ROW_IS_SLOW = jax.__version_info__ < (0, 10)

# The TPU compiler that came with jax 0.7 has other options for collectives on SparseCores.
SPARSECORE_OPTIONS = jax.__version_info__ >= (0, 10)


def module_list(modules: list[nnx.Module]) -> Any:
    """Return a container of submodules: `nnx.List` since Flax 0.12, a plain list before."""
    return nnx.List(modules) if hasattr(nnx, "List") else modules


def value(variable: nnx.Variable) -> Any:
    """Return what an NNX variable holds; `.value` is deprecated since Flax 0.12."""
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def allow_compiling_for_descriptions() -> None:
    """Keep jax 0.7 from asking the description of a device for its default layouts: it crashes."""
    if jax.__version_info__ >= (0, 8):
        return
    from jax._src.interpreters import pxla

    original = pxla.is_default_layout
    if original.__name__ != "is_default_layout":
        return  # Done before.

    def without_descriptions(layout: Any, sharding: Any, aval: Any) -> bool:
        devices = getattr(sharding, "_device_assignment", ())
        if devices and type(devices[0].client).__name__ == "CompileOnlyPyClient":
            return True
        return original(layout, sharding, aval)

    pxla.is_default_layout = without_descriptions
