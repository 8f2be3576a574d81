"""Scores of documents, against sums made by hand."""

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_nb import presets
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of
from llama_nb.train import evaluate

CONFIG = presets.get("tiny")


def test_scores_are_sums_over_documents():
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, n).tolist() for n in (3, 30, 1, 17)]
    documents = datasets.Dataset.from_dict({"ids": texts, "bytes": [2 * len(ids) for ids in texts]})
    found = evaluate(params_of(model), CONFIG, documents, batch=2, T=64)
    forward, nats = jax.jit(lambda tokens: model(tokens)), 0.0
    for ids in texts:
        padded = jnp.asarray([ids + [0] * (32 - len(ids))])
        scores = np.asarray(jax.nn.log_softmax(forward(padded)))[0]
        nats -= sum(scores[t, ids[t + 1]] for t in range(len(ids) - 1))
    assert (found.tokens, found.bytes) == (47, 102)
    assert found.loss == pytest.approx(nats / 47, rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(nats / 47), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(nats / np.log(2) / 102, rel=1e-4)
    # A model that knows nothing needs log2(V) bits for each token.
    assert found.loss == pytest.approx(np.log(256), rel=0.02)


def test_nothing_to_predict():
    documents = datasets.Dataset.from_dict({"ids": [[5]], "bytes": [1]})
    with pytest.raises(InputError, match="no token to predict"):
        evaluate({}, CONFIG, documents)
