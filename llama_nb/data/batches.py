"""Batches in an order that is the same every time, and that can be taken up in the middle."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_nb.data.packing import Batch, Row, stack
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


class Batches:
    """An endless iterator over batches, one epoch after the other.

    Every epoch has its own order, drawn from the seed. `place` says where the next batch begins;
    an iterator made with it goes on there, with the same batches.

    Parameters
    ----------
    documents
        From `tokens.tokenize`: stored (then all of it is shuffled) or streamed (then `buffer`
        documents at a time are).
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
        When the corpus doesn't fill a batch.
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
        self._begun: tuple[np.ndarray, Place] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = []
        for _ in range(self.batch):
            row = Row(self.T)
            while not row.full:
                ids, here = self._begun or next(self._source)
                end = row.put(ids, here.token)
                if end < len(ids) - 1:  # The next row goes on with it.
                    here = dataclasses.replace(here, token=end)
                    self._begun = ids, here
                else:
                    here = dataclasses.replace(here, document=here.document + 1, token=0)
                    self._begun = None
            rows.append(row)
        self.place = here
        return stack(rows)

    def _from(self, place: Place) -> Iterator[tuple[np.ndarray, Place]]:
        """Yield documents and where they begin, epoch after epoch."""
        for epoch in itertools.count(place.epoch):
            start = place if epoch == place.epoch else Place(epoch)
            learnt = 0
            for number, ids in enumerate(self._order(epoch, start.document), start.document):
                token = start.token if number == start.document else 0
                if len(ids) - 1 > token:
                    learnt += len(ids) - 1
                    yield ids, Place(epoch, number, token)
            if start == Place(epoch) and learnt < self.batch * self.T:
                raise InputError(
                    f"the corpus has {learnt:,} tokens to learn, less than a batch of "
                    f"{self.batch} x {self.T}; choose smaller batches or a larger corpus."
                )

    def _order(self, epoch: int, first: int) -> Iterator[np.ndarray]:
        """Yield an epoch's documents in its order, from number `first` on."""
        if self._stored:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.documents))
            for index in order[first:]:
                yield np.asarray(self.documents[int(index)]["ids"], np.int32)
            return
        block = first // self.buffer
        rest = iter(self.documents.skip(block * self.buffer))
        skipped = first % self.buffer
        while chunk := list(itertools.islice(rest, self.buffer)):
            order = np.random.default_rng((self.seed, epoch, block)).permutation(len(chunk))
            for index in order[skipped:]:
                yield np.asarray(chunk[index]["ids"], np.int32)
            block, skipped = block + 1, 0
