"""Safetensors files, written one piece of one tensor at a time.

A safetensors file is eight bytes of length, a JSON header that says where each tensor lies, and
the tensors. Shapes are known beforehand, so the header comes first and nothing is held back.
"""

import contextlib
import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

INDEX = "model.safetensors.index.json"
_ITEMSIZE = {"BF16": 2, "F32": 4, "I8": 1}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as a file will hold it: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _ITEMSIZE[self.dtype]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a model and the tensors in it, in order."""

    name: str
    tensors: tuple[Stored, ...]

    def header(self) -> bytes:
        """Return the bytes before the first tensor."""
        table: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for tensor in self.tensors:
            end = begin + tensor.nbytes
            offsets = [begin, end]
            table[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": offsets,
            }
            begin = end
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        return struct.pack("<Q", len(text)) + text

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header()) + sum(tensor.nbytes for tensor in self.tensors)

    def is_whole(self, folder: Path) -> bool:
        """Return whether the folder has this very file, judged by its header and size."""
        path, header = folder / self.name, self.header()
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header


def plan(groups: Iterable[tuple[Stored, ...]], max_bytes: int) -> list[Shard]:
    """Distribute tensors over files.

    Parameters
    ----------
    groups
        Tensors that stay together (a weight and its scales), in order.
    max_bytes
        Of the tensors in one file; a group that is larger gets a file of its own.
    """
    files: list[list[Stored]] = []
    room = 0
    for group in groups:
        size = sum(tensor.nbytes for tensor in group)
        if not files or size > room:
            files.append([])
            room = max_bytes
        files[-1] += group
        room -= size
    return [
        Shard(f"model-{number:05d}-of-{len(files):05d}.safetensors", tuple(tensors))
        for number, tensors in enumerate(files, 1)
    ]


def index(shards: list[Shard]) -> dict[str, object]:
    """Return the content of the index file: which file holds which tensor."""
    return {
        "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard.tensors)},
        "weight_map": {t.name: shard.name for shard in shards for t in shard.tensors},
    }


def write(shard: Shard, folder: Path, pieces: Iterable[np.ndarray]) -> Iterator[int]:
    """Write one file, yielding the bytes of each piece as it is done.

    Parameters
    ----------
    shard
        What to write.
    folder
        Where; the file has its name only when it is whole and on the disk.
    pieces
        The tensors' numbers in order, cut anyhow.
    """
    with whole_or_nothing(folder / shard.name) as file:
        file.write(shard.header())
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
            yield piece.nbytes
        assert file.tell() == shard.size


@contextlib.contextmanager
def whole_or_nothing(path: Path) -> Iterator:
    """Open a file for writing that appears under its name at once, or, after an error, not."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
