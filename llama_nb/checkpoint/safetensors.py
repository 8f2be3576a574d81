"""Hugging Face folders: `config.json` and safetensors, in one file or several with an index."""

import json
import struct
from pathlib import Path

import numpy as np

from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.names import Entry
from llama_nb.config import from_hf, read_json
from llama_nb.errors import CorruptFileError, InputError, MissingFileError

_INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint(Checkpoint):
    """A folder as `save_pretrained` writes it; tensors are views of memory maps.

    Raises
    ------
    MissingFileError, CorruptFileError, InputError
        When a file is missing, cut short, or of another architecture.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = from_hf(read_json(self.path / "config.json"))
        index = self.path / _INDEX
        if index.is_file():
            where = read_json(index).get("weight_map", {})
            if not all(isinstance(name, str) and "/" not in name for name in where.values()):
                raise CorruptFileError(f"{index} names files outside of its own folder.")
            files = sorted(set(where.values()))
        else:
            files = ["model.safetensors"]
        self._tensors: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for name in files:
            self._tensors.update(_read_header(self.path / name))
        if index.is_file() and (lost := sorted(set(where) - set(self._tensors))):
            raise CorruptFileError(f"{self.path / where[lost[0]]} lacks the tensor {lost[0]}.")
        self._maps: dict[Path, np.memmap] = {}

    def entry_name(self, entry: Entry) -> str:
        return entry.hf

    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (shape, dtype) for name, (_, dtype, shape, _) in self._tensors.items()}

    def ignored(self) -> tuple[str, ...]:
        # Old exports keep RoPE's frequencies; tied models may repeat the embedding as a head.
        frequencies = tuple(n for n in self._tensors if n.endswith("rotary_emb.inv_freq"))
        return (*frequencies, "lm_head.weight") if self.config.tied else frequencies

    def rows(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        path, dtype, shape, offset = self._tensors[name]
        if path not in self._maps:
            self._maps[path] = np.memmap(path, np.uint8, "r")
        count = int(np.prod(shape, dtype=int))
        kind = _DTYPES[dtype]()
        flat = self._maps[path][offset : offset + count * kind.itemsize]
        tensor = np.asarray(flat).view(kind).reshape(shape)
        return tensor[rows] if columns is None else tensor[rows, columns]


def _bfloat16() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


# NumPy has no bfloat16 of its own: ml_dtypes views the same bits, with no copy in float32.
_DTYPES = {
    "BF16": _bfloat16,
    "F16": lambda: np.dtype(np.float16),
    "F32": lambda: np.dtype(np.float32),
    "F64": lambda: np.dtype(np.float64),
    "I8": lambda: np.dtype(np.int8),
}


def _read_header(path: Path) -> dict[str, tuple[Path, str, tuple[int, ...], int]]:
    """Return each tensor's file, dtype, shape and byte offset.

    The header is 8 bytes of length, then JSON. It is read here and not by the `safetensors`
    package, whose NumPy side refuses bfloat16.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; the checkpoint is incomplete.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise CorruptFileError(f"{path} is cut short or no safetensors file; fetch it again.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: (
                    path,
                    item["dtype"],
                    tuple(item["shape"]),
                    8 + length + item["data_offsets"][0],
                )
                for name, item in header.items()
            }
            ends = [8 + length + item["data_offsets"][1] for item in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptFileError(f"{path} has no readable safetensors header.") from None
    if max(ends, default=0) > size:
        raise CorruptFileError(f"{path} is cut short: {size} bytes of {max(ends)}; fetch it again.")
    for name, (_, dtype, shape, offset) in tensors.items():
        if dtype not in _DTYPES:
            raise InputError(
                f"{path}: tensor {name} is {dtype}; supported are {', '.join(_DTYPES)}."
            )
        stored = header[name]["data_offsets"][1] + 8 + length - offset
        if stored != int(np.prod(shape, dtype=int)) * _DTYPES[dtype]().itemsize:
            raise CorruptFileError(
                f"{path}: tensor {name} has {stored} bytes, not those of {shape}."
            )
    return tensors
