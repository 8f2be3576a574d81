"""A model and its tokenizer from a name, a folder or a file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb import assets, presets
from llama_nb import tokenizer as tokenizers
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.errors import InputError
from llama_nb.model import Llama, with_params
from llama_nb.tokenizer import Tokenizer

DEFAULT_MODEL = "smollm2-135m"


def locate(model: str | Path) -> Path:
    """Return where a model's files are, fetching the default model when it is asked for.

    Parameters
    ----------
    model
        `smollm2-135m`, a folder with `config.json` and safetensors, or a `.gguf` file.

    Raises
    ------
    InputError
        When it is neither a path nor a known name, or the name's weights can't be fetched.
    """
    path = Path(model).expanduser()
    if path.exists() or path.suffix == ".gguf" or len(path.parts) > 1:
        return path  # A missing path is the reader's to report.
    presets.get(str(model))
    if str(model) == DEFAULT_MODEL:
        return assets.fetch(assets.SMOLLM2)
    raise InputError(
        f"{model} is a known shape, but its weights are not fetched by name; download them and "
        f"pass their folder (only {DEFAULT_MODEL} comes by itself)."
    )


def default_dtype() -> Any:
    """Return bfloat16 on TPU and GPU; float32 on CPU, where bfloat16 products are slow."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def load(model: str | Path = DEFAULT_MODEL, *, dtype: Any = None) -> tuple[Llama, Tokenizer]:
    """Return a model with its weights, and its tokenizer.

    Programs compiled for it are kept in the user's cache, so that the next run starts faster;
    set JAX's own `jax_compilation_cache_dir` beforehand to choose another place.

    Parameters
    ----------
    model
        `smollm2-135m`, a folder or a `.gguf` file, as in `locate`.
    dtype
        Of the weights and the cache; by default `default_dtype()`.

    Raises
    ------
    LlamaError
        In one sentence, when a name, file or download is bad.
    """
    path = locate(model)
    checkpoint = open_checkpoint(path)
    # A GGUF file's metadata holds its tokenizer and takes seconds to parse: once is enough.
    metadata = getattr(checkpoint, "metadata", None)
    tokenizer = Tokenizer.from_gguf(metadata) if metadata else tokenizers.load(path)
    keep_compiled_programs()
    params = load_params(checkpoint, default_dtype() if dtype is None else dtype)
    return with_params(checkpoint.config, params), tokenizer


def keep_compiled_programs() -> None:
    """Keep compiled programs across runs, unless JAX was already told where or the disk says no."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = assets.cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # A read-only home costs compile time, nothing else.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
