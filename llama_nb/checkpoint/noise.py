"""Random weights of any shape, read as a checkpoint is: real bytes, meaningless text."""

from pathlib import Path

import ml_dtypes
import numpy as np

from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.names import Entry, entries
from llama_nb.config import LlamaConfig

# Drawing billions of numbers takes minutes, so a block of them repeats. Its length is a prime:
# no two rows of a matrix begin at the same place.
_BLOCK = 4_194_301
_SCALE = 0.02  # of a trained model's weights


class Noise(Checkpoint):
    """A checkpoint that is made up as it is read, in bfloat16; nothing is on a disk.

    The same config gives the same weights, whole or in slices. Gains of norms are 1.
    """

    path = Path("random weights")

    def __init__(self, config: LlamaConfig):
        self.config = config
        self._shapes = {entry.hf: entry.stored_shape for entry in entries(config)}
        # Where in the block a tensor begins.
        self._starts = {name: 7919 * i % _BLOCK for i, name in enumerate(self._shapes)}
        block = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(_SCALE)
        self._block = block.astype(ml_dtypes.bfloat16)

    def entry_name(self, entry: Entry) -> str:
        """Return Hugging Face's name of a parameter."""
        return entry.hf

    def stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return every tensor's shape and dtype."""
        return {name: (shape, "bfloat16") for name, shape in self._shapes.items()}

    def rows(self, name: str, rows: slice, columns: slice | None) -> np.ndarray:
        """Return part of a tensor."""
        shape = self._shapes[name]
        start, stop, _ = rows.indices(shape[0])
        if columns is None:
            return np.ones(stop - start, ml_dtypes.bfloat16)
        width = shape[1]
        out = np.empty((stop - start) * width, ml_dtypes.bfloat16)
        place, done = (self._starts[name] + start * width) % _BLOCK, 0
        while done < out.size:
            count = min(_BLOCK - place, out.size - done)
            out[done : done + count] = self._block[place : place + count]
            place, done = 0, done + count
        return out.reshape(-1, width)[:, columns]
