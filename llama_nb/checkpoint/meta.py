"""Meta's folders: `params.json` and `consolidated.NN.pth`, one piece per model-parallel rank."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.names import Entry
from llama_nb.config_files import from_meta, read_json
from llama_nb.errors import CorruptFileError, MissingDependencyError, MissingFileError

# Column-parallel matrices are cut along their outputs, row-parallel ones along their inputs.
_CUT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_CUT_COLUMNS = ("wo", "w2")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class MetaCheckpoint(Checkpoint):
    """A folder as Meta publishes it; needs torch (extra `convert`), which maps the files.

    Raises
    ------
    MissingDependencyError
        Without torch.
    MissingFileError, CorruptFileError
        When a piece is missing, cut short, or a pickle that would run code.
    """

    interleaved = True

    def __init__(self, path: str | Path):
        self.path = Path(path)
        params = read_json(self.path / "params.json")
        files = sorted(self.path.glob("consolidated.*.pth"))
        if not files:
            raise MissingFileError(f"{self.path} has params.json but no consolidated.00.pth.")
        self._check_numbering(files)
        self._pieces = [_load(file) for file in files]
        self._files = files
        for file, piece in zip(files, self._pieces, strict=True):
            if lost := sorted(set(self._pieces[0]) ^ set(piece)):
                raise CorruptFileError(
                    f"{file} and {files[0].name} hold different tensors, for instance {lost[0]}."
                )
        table = self._pieces[0].get("tok_embeddings.weight")
        if table is None or table.ndim != 2:
            raise CorruptFileError(f"{files[0]} lacks the matrix tok_embeddings.weight.")
        # Llama 1 and 2 cut the embedding along D, Llama 3 along V.
        self._embedding_axis = 1 if table.shape[1] * len(files) == params.get("dim") else 0
        if len(files) == 1:
            self._embedding_axis = 0
        vocab = table.shape[0] * (len(files) if self._embedding_axis == 0 else 1)
        self.config = from_meta(params, vocab_size=vocab)
        if "output.weight" not in self._pieces[0]:
            self.config = dataclasses.replace(self.config, tied=True)

    def _check_numbering(self, files: list[Path]) -> None:
        for number, file in enumerate(files):
            if file.name != f"consolidated.{number:02d}.pth":
                raise MissingFileError(
                    f"{self.path / f'consolidated.{number:02d}.pth'} is missing: "
                    f"the next piece found is {file.name}."
                )

    def entry_name(self, entry: Entry) -> str:
        return entry.meta

    def _axis(self, name: str) -> int | None:
        kind = name.rpartition(".")[0].rpartition(".")[2]
        if kind == "tok_embeddings":
            return self._embedding_axis
        return 0 if kind in _CUT_ROWS else 1 if kind in _CUT_COLUMNS else None

    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        shapes = {}
        for name, first in self._pieces[0].items():
            shape, axis = list(first.shape), self._axis(name)
            for file, piece in zip(self._files, self._pieces, strict=True):
                if piece[name].shape != first.shape:
                    raise CorruptFileError(
                        f"{file}: tensor {name} has shape {tuple(piece[name].shape)}, in "
                        f"{self._files[0].name} it has {tuple(first.shape)}."
                    )
                if piece[name].dtype != first.dtype:
                    raise CorruptFileError(
                        f"{file}: tensor {name} is {_name(piece[name].dtype)}, in "
                        f"{self._files[0].name} it is {_name(first.dtype)}."
                    )
            if axis is not None and axis < len(shape):
                shape[axis] *= len(self._pieces)
            shapes[name] = (tuple(shape), _name(first.dtype))
        return shapes

    def readable(self, name: str, dtype: str) -> bool:
        return dtype in _DTYPES

    def ignored(self) -> tuple[str, ...]:
        # Llama 1 and 2 stored RoPE's frequencies; tied models may repeat the embedding.
        return ("rope.freqs", "output.weight") if self.config.tied else ("rope.freqs",)

    def rows(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        axis = self._axis(name)
        if columns is None or axis is None:
            part = _numpy(self._pieces[0][name])
            return part[rows] if columns is None else part[rows, columns]
        wanted = (rows, columns)[axis]
        width = self._pieces[0][name].shape[axis]
        parts = []
        for number in range(wanted.start // width, -(-wanted.stop // width)):
            low = max(wanted.start - number * width, 0)
            high = min(wanted.stop - number * width, width)
            cut = (slice(low, high), columns) if axis == 0 else (rows, slice(low, high))
            parts.append(_numpy(self._pieces[number][name])[cut])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def _load(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            "reading Meta's .pth files needs torch: pip install 'llama_nb[convert]'."
        ) from None
    try:
        # weights_only: a pickle is a program, and this one comes from elsewhere.
        piece = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptFileError(
            f"{path} cannot be read as tensors only ({reason}); it is cut short, of an old format, "
            "or holds code, which is not run."
        ) from None
    if not isinstance(piece, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in piece.items()
    ):
        raise CorruptFileError(f"{path} is not a table of tensors.")
    return piece


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
