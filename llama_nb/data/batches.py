"""Batches in an order that is the same every time, and that can be taken up in the middle."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_nb.data.packing import Batch, Row, read, stack
from llama_nb.errors import InputError

BUFFER = 10_000  # Documents of a stream that are shuffled among themselves.


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a corpus the next row begins.

    Attributes
    ----------
    epoch, document, token
        How often the corpus was read, which document of this epoch's order is next, and from which
        of its tokens on.
    """

    epoch: int = 0
    document: int = 0
    token: int = 0


# A document's tokens, which of them are to be predicted (None: all), and where to go on.
_Piece = tuple[np.ndarray, np.ndarray | None, Place]


class Batches:
    """An endless iterator over batches, one epoch after the other.

    Every epoch has its own order, drawn from the seed. `place` says where the next batch begins;
    an iterator made with it goes on there, with the same batches.

    Documents fill the rows and are cut where one ends. Conversations are not, so that no answer
    loses its question: one that doesn't fit begins the next row, and of one longer than a row only
    the first T tokens are learnt.

    Parameters
    ----------
    documents
        From `tokens.tokenize` or `chats.tokenize_chats`: stored (then all of it is shuffled) or
        streamed (then `buffer` documents at a time are).
    batch, T
        Rows, and tokens of each: B and T.
    seed
        Of the order.
    place
        Where to begin.
    buffer
        For streams.

    Raises
    ------
    InputError
        When the corpus doesn't fill a batch, or its conversations have no answer within a row.
    """

    def __init__(
        self,
        documents: Any,
        batch: int,
        T: int,
        *,
        seed: int = 0,
        place: Place | None = None,
        buffer: int = BUFFER,
    ):
        if batch < 1 or T < 1:
            raise InputError(
                f"a batch of {batch} x {T} tokens was asked for; both must be 1 or more."
            )
        self.documents, self.batch, self.T, self.seed = documents, batch, T, seed
        self.place, self.buffer = place or Place(), buffer
        self._stored = hasattr(documents, "__len__")
        self._source = self._from(self.place)
        self._begun: _Piece | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = []
        for _ in range(self.batch):
            row = Row(self.T)
            while not row.full:
                ids, learn, here = self._begun or next(self._source)
                rest = len(ids) - 1 - here.token
                if learn is not None and row.used > 0 and self.T - row.used < rest:
                    self._begun = ids, learn, here
                    break
                end = row.put(ids, here.token, learn)
                if learn is None and end < len(ids) - 1:  # The next row goes on with it.
                    here = dataclasses.replace(here, token=end)
                    self._begun = ids, learn, here
                else:
                    here = dataclasses.replace(here, document=here.document + 1, token=0)
                    self._begun = None
            rows.append(row)
        self.place = here
        return stack(rows)

    def _from(self, place: Place) -> Iterator[_Piece]:
        """Yield documents and where they begin, epoch after epoch."""
        for epoch in itertools.count(place.epoch):
            start = place if epoch == place.epoch else Place(epoch)
            learnt, needed = 0, self.batch * self.T
            documents = self._order(epoch, start.document)
            for number, (ids, learn) in enumerate(documents, start.document):
                token = start.token if number == start.document else 0
                if learn is not None:
                    needed = 1  # Rows are padded, so any number of answers fills a batch.
                    if not learn[1 : self.T + 1].any():
                        continue
                if len(ids) - 1 > token:
                    learnt += len(ids) - 1
                    yield ids, learn, Place(epoch, number, token)
            if start != Place(epoch) or learnt >= needed:
                continue
            if needed == 1:
                raise InputError(
                    f"no conversation has an answer within its first {self.T} tokens; choose "
                    "longer rows."
                )
            raise InputError(
                f"the corpus has {learnt:,} tokens to learn, less than a batch of "
                f"{self.batch} x {self.T}; choose smaller batches or a larger corpus."
            )

    def _order(self, epoch: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield an epoch's documents in its order, from number `first` on."""
        if self._stored:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.documents))
            for index in order[first:]:
                yield read(self.documents[int(index)])
            return
        block = first // self.buffer
        rest = iter(self.documents.skip(block * self.buffer))
        skipped = first % self.buffer
        while chunk := list(itertools.islice(rest, self.buffer)):
            order = np.random.default_rng((self.seed, epoch, block)).permutation(len(chunk))
            for index in order[skipped:]:
                yield read(chunk[index])
            block, skipped = block + 1, 0
