"""Llama 3 in JAX, small enough to read.

`load` gives a model and its tokenizer; `generate` and `stream` give text. Everything else is
reached by module: `llama_nb.layers`, `llama_nb.model`, and so on.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported at first use, so that `import llama_nb` costs nothing.
_HOMES = {
    "Chat": "generation",
    "Completion": "generation",
    "Llama": "model",
    "LlamaConfig": "config",
    "LlamaError": "errors",
    "complete": "generation",
    "generate": "generation",
    "load": "loading",
    "stream": "generation",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llama_nb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llama_nb.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
