"""Weights that are in memory, read as a checkpoint is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_nb import packed
from llama_nb.checkpoint.base import Checkpoint, Index
from llama_nb.checkpoint.names import Entry, entries
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError


class Memory(Checkpoint):
    """A model's parameters, as `model.params_of` gives them.

    Raises
    ------
    InputError
        When they are not those of a model of this shape.
    """

    path = Path("memory")

    def __init__(self, config: LlamaConfig, params: Mapping[str, Any]):
        self.config, self._params = config, params
        for entry in entries(config):
            try:
                shape = tuple(self._weight(entry).shape)
            except (KeyError, AttributeError):
                shape = None
            if shape != entry.shape:
                raise InputError(
                    f"the weights are not of this config: {entry.name} has shape {shape}, and the "
                    f"config says {entry.shape}."
                )

    def _weight(self, entry: Entry) -> Any:
        found: Any = self._params
        for key in entry.path:
            found = found[key]
        return found

    def read(self, entry: Entry, index: Index | None = None) -> np.ndarray:
        """Return one parameter, or a slice of it, in its natural shape."""
        weight = self._weight(entry)
        if isinstance(weight, packed.Packed):
            weight = packed.unpack(weight)
        return np.asarray(weight if index is None else weight[index])
