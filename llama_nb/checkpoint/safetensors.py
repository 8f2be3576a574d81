"""Hugging Face folders: `config.json` and safetensors, in one file or several with an index."""

import json
import math
import operator
import os
import struct
from pathlib import Path

import numpy as np

from llama_nb.checkpoint import compressed
from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.names import Entry, entries
from llama_nb.config_files import from_hf, read_json
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
        described = read_json(self.path / "config.json")
        self.config = from_hf(described)
        if described.get("quantization_config") is not None:
            compressed.require(described["quantization_config"], str(self.path / "config.json"))
        index = self.path / _INDEX
        if index.is_file():
            where = read_json(index).get("weight_map")
            if not isinstance(where, dict):
                raise CorruptFileError(f"{index} has no table weight_map; fetch it again.")
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
        # Which tensors are int8 is told by their names: a weight, and its scales beside it.
        self._scaled = {
            name: compressed.scale_name(name)
            for name in self._tensors
            if compressed.scale_name(name) in self._tensors
        }

    def entry_name(self, entry: Entry) -> str:
        return entry.hf

    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (shape, dtype) for name, (_, dtype, shape, _) in self._tensors.items()}

    def ignored(self) -> tuple[str, ...]:
        # Old exports keep RoPE's frequencies; tied models may repeat the embedding as a head.
        frequencies = tuple(n for n in self._tensors if n.endswith("rotary_emb.inv_freq"))
        known = (*frequencies, *self._scaled.values())
        return (*known, "lm_head.weight") if self.config.tied else known

    def prefetch(self, entry: Entry) -> None:
        path, dtype, shape, offset = self._tensors[entry.hf]
        if hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                size = math.prod(shape) * _DTYPES[dtype]().itemsize
                os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def readable(self, name: str, dtype: str) -> bool:
        if (dtype == "I8") != (name in self._scaled):
            path, scale = self._tensors[name][0], compressed.scale_name(name)
            raise CorruptFileError(
                f"{path} lacks the tensor {scale} that the int8 tensor {name} needs."
                if dtype == "I8"
                else f"{path}: tensor {name} is {dtype}, but {scale} says that it is int8."
            )
        return True

    def check(self) -> None:
        super().check()
        for entry in entries(self.config):
            self.scales(entry)

    def scales(self, entry: Entry) -> np.ndarray | None:
        name = self._scaled.get(entry.hf)
        if name is None:
            return None
        path, dtype, shape, _ = self._tensors[name]
        where = f"{path}: tensor {name}"
        if dtype == "I8":
            raise CorruptFileError(f"{where} is I8; scales are floats.")
        scales = self.rows(name, slice(None), slice(None) if len(shape) == 2 else None)
        return compressed.check_scales(scales, entry.stored_shape[0], where)

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
            found = {
                name: (
                    str(item["dtype"]),
                    tuple(map(operator.index, item["shape"])),
                    tuple(map(operator.index, item["data_offsets"])),
                )
                for name, item in header.items()
            }
            end = 8 + length + max((offsets[1] for _, _, offsets in found.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise CorruptFileError(f"{path} has no readable safetensors header.") from None
    if end > size:
        raise CorruptFileError(f"{path} is cut short: {size} bytes of {end}; fetch it again.")
    for name, (dtype, shape, offsets) in found.items():
        if dtype not in _DTYPES:
            raise InputError(
                f"{path}: tensor {name} is {dtype}; supported are {', '.join(_DTYPES)}."
            )
        stored = offsets[1] - offsets[0]
        if offsets[0] < 0 or stored != math.prod(shape) * _DTYPES[dtype]().itemsize:
            raise CorruptFileError(
                f"{path}: tensor {name} has {stored} bytes, not those of {shape}."
            )
    return {
        name: (path, dtype, shape, 8 + length + offsets[0])
        for name, (dtype, shape, offsets) in found.items()
    }
