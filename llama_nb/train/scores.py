"""How well a model predicts documents that it has not learnt."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from llama_nb.config import LlamaConfig
from llama_nb.data.packing import Batch, Row, pack, read, stack
from llama_nb.errors import InputError
from llama_nb.sharding import Layout
from llama_nb.train.step import Recipe, losses


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model makes of some documents.

    Attributes
    ----------
    loss
        Mean cross-entropy of a token, in nats.
    perplexity
        `exp(loss)`: between how many tokens it hesitates, on average.
    bits_per_byte
        Cross-entropy of the whole text in bits, over its bytes: what models with different
        tokenizers can be compared by.
    tokens, bytes
        How many were predicted, and how many bytes of text that were.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


@functools.partial(jax.jit, static_argnames=("config", "layout", "recipe"))
def _sums(
    params: Any, batch: Batch, *, config: LlamaConfig, layout: Layout | None, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    found, _ = losses(params, batch, config=config, layout=layout, recipe=recipe)
    return (found * batch.weights).sum(), batch.weights.sum()


def evaluate(
    params: Any,
    config: LlamaConfig,
    documents: Any,
    *,
    batch: int = 8,
    T: int = 256,
    layout: Layout | None = None,
    recipe: Recipe | None = None,
) -> Score:
    """Return a model's score on tokenized documents, each read from its beginning.

    Parameters
    ----------
    documents
        From `data.tokenize`: columns "ids" and "bytes". Longer ones than T are cut into pieces that
        don't see each other. Of conversations (`data.tokenize_chats`) only answers count.
    batch, T
        Rows computed at once, and tokens of each.

    Raises
    ------
    InputError
        When there is nothing to predict.
    """
    recipe = recipe or Recipe(dtype="float32")
    size = 0

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        nonlocal size
        for row in documents:
            size += row["bytes"]
            yield read(row)

    nats = tokens = 0.0
    rows = pack(pieces(), T)
    while group := list(itertools.islice(rows, batch)):
        group += [Row(T) for _ in range(batch - len(group))]  # One shape, one program.
        found = _sums(params, stack(group), config=config, layout=layout, recipe=recipe)
        nats, tokens = nats + float(found[0]), tokens + float(found[1])
    if not tokens:
        raise InputError("there is no token to predict in these documents.")
    return Score(
        loss=nats / tokens,
        perplexity=math.exp(min(nats / tokens, 700.0)),
        bits_per_byte=nats / math.log(2) / size,
        tokens=int(tokens),
        bytes=size,
    )
