"""What all checkpoint formats have in common: names, shapes, dtypes, and slices on demand."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llama_nb.checkpoint.names import Entry, entries, split_halves
from llama_nb.config import LlamaConfig
from llama_nb.errors import CorruptFileError, InputError

Index = tuple[slice, ...]


class Checkpoint:
    """A model on disk. Subclasses say how one format stores tensors; nothing is read before asked.

    Attributes
    ----------
    path
        The file or folder.
    config
        The model's shape, from the checkpoint's own metadata.
    interleaved
        Whether rotary pairs are stored in Meta's order.
    """

    path: Path
    config: LlamaConfig
    interleaved = False

    def entry_name(self, entry: Entry) -> str:
        """Return the format's name of a parameter."""
        raise NotImplementedError

    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return every tensor's stored shape and dtype (`bfloat16`, `float32`, `Q4_1`...)."""
        raise NotImplementedError

    def rows(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        """Return part of a stored tensor: some rows and, for a matrix, some columns."""
        raise NotImplementedError

    def scales(self, entry: Entry) -> np.ndarray | None:
        """Return what each stored row of an int8 tensor is to be multiplied by.

        Returns
        -------
        numpy.ndarray or None
            float32, shape (outputs,); None where the tensor is stored plain. `read` and `rows`
            return the int8 values as they are.
        """
        return None

    def prefetch(self, entry: Entry) -> None:
        """Have the system begin to read a tensor that will be wanted soon, where it can."""
        return

    def readable(self, name: str, dtype: str) -> bool:
        """Return whether a tensor of that stored dtype can be read as weights."""
        return True

    def ignored(self) -> Iterable[str]:
        """Return names of stored tensors that are no parameters."""
        return ()

    def check(self) -> None:
        """Compare the stored tensors with what the config promises, before any is read.

        Raises
        ------
        CorruptFileError
            Naming the file and the first tensor that is missing, has another shape or dtype, or
            is unknown.
        """
        stored = self.stored()
        expected = {self.entry_name(entry): entry for entry in entries(self.config)}
        for name, entry in expected.items():
            if name not in stored:
                raise CorruptFileError(
                    f"{self.path} lacks the tensor {name}; fetch the checkpoint again."
                )
            if stored[name][0] != entry.stored_shape:
                raise CorruptFileError(
                    f"{self.path}: tensor {name} has shape {stored[name][0]}, but the config "
                    f"says {entry.stored_shape}; config and tensors belong to different models."
                )
            if not self.readable(name, stored[name][1]):
                raise CorruptFileError(
                    f"{self.path}: tensor {name} is {stored[name][1]}, which no weights are here; "
                    "use a checkpoint in bfloat16, float16 or float32."
                )
        extra = [name for name in stored if name not in expected and name not in self.ignored()]
        if extra:
            raise CorruptFileError(
                f"{self.path} holds a tensor that no Llama of this config has: {extra[0]}"
                + (f" and {len(extra) - 1} more." if len(extra) > 1 else ".")
            )

    def read(self, entry: Entry, index: Index | None = None) -> np.ndarray:
        """Return one parameter, or a slice of it, in its natural shape.

        Parameters
        ----------
        entry
            Which, from `names.entries`.
        index
            One slice per axis of `entry.shape`; None is all. Rows and columns outside of it are
            not read, except that rotary pairs are read a whole head at a time.

        Returns
        -------
        numpy.ndarray
            Contiguous or a view; the stored dtype, or float32 where the format is quantized.
        """
        name = self.entry_name(entry)
        if index is None:
            index = (slice(None),) * len(entry.shape)
        if len(index) != len(entry.shape):
            raise InputError(
                f"{entry.name} has {len(entry.shape)} axes; {len(index)} slices were given."
            )
        spans = [slice(*s.indices(size)) for s, size in zip(index, entry.shape, strict=True)]
        if not entry.outputs:
            return self.rows(name, spans[0], spans[1] if len(spans) == 2 else None)
        cut = len(entry.shape) - entry.outputs
        rows, row_rest = _flat(spans[cut:], entry.shape[cut:])
        columns, column_rest = _flat(spans[:cut], entry.shape[:cut])
        block = self.rows(name, rows, columns)  # (outputs, inputs)
        outer = (rows.stop - rows.start) // _size(entry.shape[cut + 1 :])
        block = block.reshape(outer, *entry.shape[cut + 1 :], -1)
        if entry.rotary and self.interleaved:
            block = split_halves(block)
        block = block[(slice(None), *row_rest)]
        lead = block.shape[: entry.outputs]
        inner = (columns.stop - columns.start) // _size(entry.shape[1:cut])
        block = block.reshape(*lead, inner, *entry.shape[1:cut])
        block = block[(slice(None),) * (entry.outputs + 1) + tuple(column_rest)]
        order = (*range(entry.outputs, block.ndim), *range(entry.outputs))
        return block.transpose(order)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=int))


def _flat(spans: list[slice], shape: tuple[int, ...]) -> tuple[slice, list[slice]]:
    """Return the range of flattened axes that covers `spans`, and what is left to cut."""
    width = _size(shape[1:])
    return slice(spans[0].start * width, spans[0].stop * width), spans[1:]
