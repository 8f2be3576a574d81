"""A model and its tokenizer from a name, a folder or a file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llama_nb import assets, download, presets, progress, sharding
from llama_nb import tokenizer as tokenizers
from llama_nb.checkpoint import Checkpoint, load_params, open_checkpoint
from llama_nb.errors import InputError
from llama_nb.kernels.choice import choose
from llama_nb.model import Llama, with_params
from llama_nb.tokenizer import Tokenizer

DEFAULT_MODEL = "smollm2-135m"

Watch = Callable[[int, int], None]


def locate(model: str | Path) -> Path:
    """Return where a model's files are, fetching the default model when it is asked for.

    Parameters
    ----------
    model
        `smollm2-135m`, a folder with `config.json` and safetensors, one with Meta's `params.json`,
        a `.gguf` file, or the name of a repository that `llama-nb download` has fetched.

    Raises
    ------
    InputError
        When it is neither a path nor a known name, or the name's weights can't be fetched.
    """
    path = Path(model).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) and not path.suffix:
        return _downloaded(str(model))
    if path.exists() or path.suffix == ".gguf" or len(path.parts) > 1:
        return path  # A missing path is the reader's to report.
    presets.get(str(model))
    if str(model) == DEFAULT_MODEL:
        return assets.fetch(assets.SMOLLM2)
    raise InputError(
        f"{model} is a known shape, but its weights are not fetched by name; download them and "
        f"pass their folder (only {DEFAULT_MODEL} comes by itself)."
    )


def _downloaded(repo: str) -> Path:
    folder = download.cached(repo)
    if folder is None:
        raise InputError(
            f"{repo} is neither a folder here nor in the Hub's cache; "
            f"fetch it with: llama-nb download {repo}"
        )
    return folder


def default_dtype() -> Any:
    """Return bfloat16 on TPU and GPU; float32 on CPU, where bfloat16 products are slow."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    dtype: Any = None,
    quant: str | None = None,
    mesh: Mesh | None = None,
    strategy: str = "2d",
    attention_impl: str = "auto",
) -> tuple[Llama, Tokenizer]:
    """Return a model with its weights, and its tokenizer.

    Programs compiled for it are kept in the user's cache, so that the next run starts faster;
    set JAX's own `jax_compilation_cache_dir` beforehand to choose another place.

    Parameters
    ----------
    model
        `smollm2-135m`, a folder or a `.gguf` file, as in `locate`.
    dtype
        Of the weights and the cache; by default `default_dtype()`. On CPU bfloat16 is how the
        matrices are kept (`packed.Packed`); what is computed is float32.
    quant
        "int8" keeps the matrices as int8 with a scale per output.
    mesh, strategy
        Split the weights over the devices of a mesh, by a strategy of `sharding.STRATEGIES`; each
        device's part is read straight from the files. Heads that don't divide stay whole.
    attention_impl
        "auto", "xla" or "pallas", as in `kernels.choose`.

    Raises
    ------
    LlamaError
        In one sentence, when a mesh doesn't divide the model, or a name, file or download is bad.
    """
    choose(attention_impl, jax.devices()[0])  # Say what is wrong before reading anything.
    checkpoint, tokenizer = open_model(model)
    options = {"dtype": dtype, "quant": quant, "mesh": mesh, "strategy": strategy}
    return build(checkpoint, attention_impl=attention_impl, **options), tokenizer


def open_model(model: str | Path) -> tuple[Checkpoint, Tokenizer]:
    """Return a model's checkpoint, of which only headers are read, and its tokenizer.

    Parameters and errors as in `locate`.
    """
    path = locate(model)
    checkpoint = open_checkpoint(path)
    # A GGUF file's metadata holds its tokenizer and takes seconds to parse: once is enough.
    metadata = getattr(checkpoint, "metadata", None)
    return checkpoint, Tokenizer.from_gguf(metadata) if metadata else tokenizers.load(path)


def build(
    checkpoint: Checkpoint,
    *,
    dtype: Any = None,
    quant: str | None = None,
    mesh: Mesh | None = None,
    strategy: str = "2d",
    attention_impl: str = "auto",
    watch: Watch | None = None,
) -> Llama:
    """Return the model of an open checkpoint; parameters as in `load` and `load_weights`."""
    keep_compiled_programs()
    layout = None
    if mesh is not None:
        layout = sharding.layout(checkpoint.config, mesh, strategy)
        sharding.check(checkpoint.config, layout, heads=False)
    options = {"dtype": dtype, "quant": quant, "mesh": mesh, "strategy": strategy}
    params = load_weights(checkpoint, watch=watch, **options)
    return with_params(checkpoint.config, params, layout, attention_impl)


def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: Any = None,
    quant: str | None = None,
    mesh: Mesh | None = None,
    strategy: str = "2d",
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Return an open checkpoint's parameters in the form that suits this backend.

    Parameters
    ----------
    dtype, quant, mesh, strategy
        As in `load`.
    watch
        Called with numbers done and numbers in all after each tensor. Without it, progress is shown
        on standard error for models that take a while.
    """
    dtype = np.dtype(default_dtype() if dtype is None else dtype)
    config = checkpoint.config
    # On CPU a matrix in few bits is widened in the product, and activations stay float32.
    bits = jax.default_backend() == "cpu" and dtype == jnp.bfloat16
    quiet = watch is not None or config.param_count() < 10**9
    with progress.bar("loading", config.param_count(), quiet=quiet) as show:
        return load_params(
            checkpoint,
            jnp.float32 if bits else dtype,
            quant=quant,
            bits=bits and quant is None,
            shardings=None if mesh is None else sharding.param_shardings(config, mesh, strategy),
            progress=watch or show,
        )


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
