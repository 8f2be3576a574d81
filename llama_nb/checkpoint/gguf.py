"""GGUF, the single-file format of llama.cpp; quantized tensors are dequantized by `gguf`."""

from pathlib import Path
from typing import Any

import numpy as np

from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.names import Entry
from llama_nb.config_files import from_gguf
from llama_nb.errors import (
    CorruptFileError,
    InputError,
    MissingDependencyError,
    MissingFileError,
)
from llama_nb.gguf_reader import gguf_reader

_ROPE_FACTORS = "rope_freqs.weight"


class GGUFCheckpoint(Checkpoint):
    """A `.gguf` file, memory-mapped.

    Raises
    ------
    MissingFileError, CorruptFileError
        When the file isn't there, is no GGUF file or is cut short.
    """

    interleaved = True  # llama.cpp keeps Meta's pairs, also of models converted from elsewhere.

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f"there is no file {self.path}.")
        with self.path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CorruptFileError(
                    f"{self.path} is not a GGUF file: it doesn't begin with 'GGUF'."
                )
        try:
            reader = gguf_reader(self.path)
        except MissingDependencyError:
            raise
        except Exception as error:  # The reader meets a bad file with whatever NumPy raises.
            raise CorruptFileError(
                f"{self.path} is damaged or cut short ({error}); fetch it again."
            ) from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._readable: set[str] = set()
        size = self.path.stat().st_size
        end = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
        if end > size:
            raise CorruptFileError(
                f"{self.path} is cut short: {size} bytes of {end}; fetch it again."
            )
        self.metadata: dict[str, Any] = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        factors = self._tensors.get(_ROPE_FACTORS)
        self.config = from_gguf(
            self.metadata,
            tied="output.weight" not in self._tensors,
            rope_factors=None if factors is None else np.asarray(factors.data).ravel(),
        )

    def entry_name(self, entry: Entry) -> str:
        return entry.gguf

    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            # GGUF lists the fastest axis first.
            name: (tuple(int(n) for n in reversed(tensor.shape)), tensor.tensor_type.name)
            for name, tensor in self._tensors.items()
        }

    def readable(self, name: str, dtype: str) -> bool:
        if dtype not in self._readable:
            self.rows(name, slice(0, 1), None)  # or says which dtypes would do
            self._readable.add(dtype)
        return True

    def ignored(self) -> tuple[str, ...]:
        return (_ROPE_FACTORS,)

    def rows(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        from gguf import quants

        tensor = self._tensors[name]
        try:
            # Blocks of a quantized tensor lie along a row, so whole rows can be taken out.
            values = quants.dequantize(tensor.data[rows], tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"{self.path}: tensor {name} is {tensor.tensor_type.name}, which the gguf package "
                "cannot dequantize; use a Q8_0, Q4_1 or F16 file."
            ) from None
        return values if columns is None else values[:, columns]
