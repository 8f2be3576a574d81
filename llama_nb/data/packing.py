"""Documents side by side in rows of equal length, each seeing only itself."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from llama_nb.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows to learn from; every array has shape (B, T).

    Without the last three a row is one document, and all of it counts.

    Attributes
    ----------
    tokens
        What the model reads, int32.
    targets
        What comes next in the same document, int32.
    segments
        Which document of its row a token is of, int32, from 1; 0 is padding.
    positions
        Where in its document (or in the piece of it that the row holds), int32, from 0.
    weights
        How much each target counts, float32: 0 for padding and for what is not to be learnt.
    """

    tokens: jax.Array | np.ndarray
    targets: jax.Array | np.ndarray
    segments: jax.Array | np.ndarray | None = None
    positions: jax.Array | np.ndarray | None = None
    weights: jax.Array | np.ndarray | None = None


@dataclasses.dataclass
class Row:
    """A row of a batch that is being filled, shape (T,)."""

    T: int
    used: int = 0
    pieces: int = 0

    def __post_init__(self):
        names = (field.name for field in dataclasses.fields(Batch))
        self.arrays = {name: np.zeros(self.T, np.int32) for name in names}
        self.arrays["weights"] = np.zeros(self.T, np.float32)

    @property
    def full(self) -> bool:
        """Whether nothing fits any more."""
        return self.used == self.T

    def put(self, ids: np.ndarray, first: int, learn: np.ndarray | None = None) -> int:
        """Add a document from its token `first` on, as far as it fits; return where to go on.

        Parameters
        ----------
        ids
            The whole document.
        learn
            Which tokens are to be predicted, one boolean each; by default all.
        """
        count = min(self.T - self.used, len(ids) - 1 - first)
        here, end = slice(self.used, self.used + count), first + count
        self.pieces += 1
        self.arrays["tokens"][here] = ids[first:end]
        self.arrays["targets"][here] = ids[first + 1 : end + 1]
        self.arrays["segments"][here] = self.pieces
        self.arrays["positions"][here] = np.arange(count)
        self.arrays["weights"][here] = 1 if learn is None else learn[first + 1 : end + 1]
        self.used += count
        return end


def stack(rows: list[Row]) -> Batch:
    """Return rows as a batch."""
    return Batch(**{name: np.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays})


def pack(
    documents: Iterator[np.ndarray | tuple[np.ndarray, np.ndarray | None]], T: int
) -> Iterator[Row]:
    """Yield full rows, and a last one that is padded.

    A document that doesn't fit goes on in the next row, where it has forgotten its beginning. A
    conversation begins the next row instead, and is cut only where it is longer than a row.

    Parameters
    ----------
    documents
        Token ids, shape (n,) each, or pairs of them and `learn`, as `Row.put` takes it; what has
        no next token is left out.
    T
        Tokens per row.

    Raises
    ------
    InputError
        For rows of no tokens.
    """
    if T < 1:
        raise InputError(f"rows of {T} tokens were asked for; they need at least 1.")
    row = Row(T)
    for document in documents:
        ids, learn = document if isinstance(document, tuple) else (document, None)
        first = 0
        if learn is not None and row.used and T - row.used < len(ids) - 1:
            yield row
            row = Row(T)
        while first < len(ids) - 1:
            first = row.put(ids, first, learn)
            if row.full:
                yield row
                row = Row(T)
    if row.used:
        yield row


def read(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a tokenized document's ids and, of a conversation, which are to be predicted."""
    learn = row.get("learn")
    return np.asarray(row["ids"], np.int32), None if learn is None else np.asarray(learn, bool)
