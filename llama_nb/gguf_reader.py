"""The `gguf` package's reader, without the time that it spends on slices of a memory map."""

from pathlib import Path
from typing import Any

import numpy as np

from llama_nb.errors import MissingDependencyError


def gguf_reader(path: Path) -> Any:
    """Return a `gguf.GGUFReader`, whose tensors are plain arrays over the mapped file.

    The reader takes hundreds of thousands of slices, one for each token of a vocabulary. Of a plain
    array they cost a third of what they cost of a `numpy.memmap`; the bytes are the same.

    Raises
    ------
    MissingDependencyError
        When `gguf` is not installed.
    Exception
        Whatever the reader raises for a file that is damaged.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingDependencyError(f"{path}: install 'gguf' to read it.") from None

    class Reader(GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = mapped.view(np.ndarray)

    return Reader(path)
