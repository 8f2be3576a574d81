"""Whether this machine can build a kernel at all."""

from collections.abc import Callable
from typing import Any

import jax


def refusal(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> str:
    """Return why this machine can't compile a function for such arguments, or nothing if it can."""
    try:
        jax.jit(function).lower(*shapes).compile()
    except Exception as error:  # Whatever it is, there is another way.
        return f"{type(error).__name__}: {error}"
    return ""
