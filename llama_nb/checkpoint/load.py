"""From a checkpoint to arrays on devices, one tensor after another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.gguf import GGUFCheckpoint
from llama_nb.checkpoint.meta import MetaCheckpoint
from llama_nb.checkpoint.names import Entry, entries
from llama_nb.checkpoint.safetensors import SafetensorsCheckpoint
from llama_nb.errors import InputError, MissingFileError


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the reader for a file or folder; only headers are read.

    Raises
    ------
    MissingFileError
        When there is nothing, or nothing known, at `path`.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    if path.is_dir() and (path / "config.json").is_file():
        return SafetensorsCheckpoint(path)
    if path.is_dir() and (path / "params.json").is_file():
        return MetaCheckpoint(path)
    if not path.exists():
        raise MissingFileError(f"there is no file or folder {path}.")
    raise MissingFileError(
        f"{path} holds no checkpoint: expected a .gguf file, a folder with config.json and "
        "model.safetensors, or one with params.json and consolidated.00.pth."
    )


def load_params(
    checkpoint: Checkpoint,
    dtype: Any = jnp.float32,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the parameters as `model.with_params` takes them.

    Parameters
    ----------
    checkpoint
        Open; its tensors are checked against its config first.
    dtype
        What every parameter is cast to.
    progress
        Called with bytes done and bytes in all after each tensor.

    Raises
    ------
    CorruptFileError
        Before anything is read, when tensors and config disagree.
    """
    checkpoint.check()
    todo = list(entries(checkpoint.config))
    itemsize = np.dtype(dtype).itemsize
    total = sum(int(np.prod(entry.shape)) for entry in todo) * itemsize
    done, params = 0, {}
    for entry in todo:
        values = checkpoint.read(entry)
        array = jax.device_put(np.ascontiguousarray(values.astype(dtype, copy=False)))
        _insert(params, entry, array)
        done += array.size * itemsize
        if progress is not None:
            progress(done, total)
    return params


def _insert(params: dict[str, Any], entry: Entry, array: Any) -> None:
    node = params
    for key in entry.path[:-1]:
        node = node.setdefault(key, {})
    if entry.path[-1] in node:
        raise InputError(f"{entry.name} was loaded twice.")
    node[entry.path[-1]] = array
