"""Random weights load as files do: whole, in slices, quantized, over a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_nb import loading, presets, sharding
from llama_nb.checkpoint.names import entries
from llama_nb.checkpoint.noise import Noise
from llama_nb.session import Session

TINY = presets.get("tiny")


def test_a_slice_is_a_slice_of_the_whole():
    checkpoint, rng = Noise(TINY), np.random.default_rng(0)
    for entry in entries(TINY):
        whole = checkpoint.read(entry)
        assert whole.shape == entry.shape and whole.dtype == jnp.bfloat16
        cuts = [sorted(rng.choice(size + 1, 2, replace=False)) for size in entry.shape]
        index = tuple(slice(int(a), int(b)) for a, b in cuts)
        np.testing.assert_array_equal(checkpoint.read(entry, index), whole[index])


def test_a_matrix_longer_than_the_block_repeats_no_row():
    config = presets.get("llama3.1-8b")
    entry = next(iter(entries(config)))  # (V, D), 525 million numbers
    checkpoint = Noise(config)
    rows = [checkpoint.read(entry, (slice(i, i + 1), slice(0, 64))) for i in range(0, 9000, 7)]
    assert len({row.tobytes() for row in rows}) == len(rows)
    part = np.concatenate([checkpoint.read(entry, (slice(1000, 3000), slice(None)))])
    assert abs(part.astype(np.float32).std() - 0.02) < 1e-3  # over the block's end


def test_it_loads_in_every_way():
    checkpoint = Noise(TINY)
    whole = loading.load_weights(checkpoint)
    assert set(np.unique(whole["norm"])) == {1.0}
    again = loading.load_weights(Noise(TINY))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    split = loading.load_weights(checkpoint, mesh=sharding.make_mesh((2, 2)))
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    small = loading.load_weights(checkpoint, quant="int8")
    assert small["embed"].values.dtype == jnp.int8


def test_watch_hears_of_every_tensor():
    heard = []
    loading.load_weights(Noise(TINY), watch=lambda *numbers: heard.append(numbers))
    assert len(heard) == len(list(entries(TINY)))
    assert heard[-1] == (TINY.param_count(), TINY.param_count())


@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_a_model_of_noise_runs(mesh):
    config = dataclasses.replace(TINY, num_heads=8, num_kv_heads=4)
    mesh = mesh and sharding.make_mesh(mesh)
    model = loading.build(Noise(config), quant="int8", mesh=mesh)
    session = Session(model, 64)
    tokens = [int(token[0]) for token in session.tokens(session.feed([[1, 2, 3]]), 5)]
    alone = Session(loading.build(Noise(config), quant="int8"), 64)
    assert tokens == [int(token[0]) for token in alone.tokens(alone.feed([[1, 2, 3]]), 5)]
