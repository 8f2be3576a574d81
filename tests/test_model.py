"""The module tree: shapes, axes, and the same numbers with and without `jit`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_nb import presets
from llama_nb.model import Llama, params_of, with_params
from tests.marks import slow


@pytest.mark.parametrize("T", [5, *slow(64, 130)])
def test_outside_of_jit_the_numbers_are_the_same(T):
    # Wide enough for the CPU backend's threads; jax 0.7.2 once failed here, and not each time.
    config = dataclasses.replace(
        presets.get("smollm2-135m"), num_layers=6, vocab_size=512, context=512
    )
    model = Llama(config, rngs=nnx.Rngs(0))
    params = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, params_of(model))
    model = with_params(config, params)
    tokens = np.random.default_rng(T).integers(0, 512, (1, T))
    expected = jax.jit(lambda p, t: with_params(config, p)(t))(params, tokens)
    for _ in range(3):
        np.testing.assert_allclose(model(jnp.asarray(tokens)), expected, atol=2e-3)


def test_every_parameter_has_logical_axes_that_fit_it():
    known = {"vocab", "embed", "heads", "kv_heads", "head_dim", "ffn"}
    model = Llama(presets.get("tiny"))
    count = 0
    for _, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param):
            count += 1
            assert set(leaf.axes) <= known and len(leaf.axes) == len(leaf.shape)
    assert count == len(jax.tree.leaves(params_of(model)))


def test_an_abstract_model_takes_no_memory_and_holds_shapes():
    leaves = jax.tree.leaves(params_of(Llama(presets.get("llama3.1-405b"), dtype=jnp.bfloat16)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == 405_853_388_800


def test_tied_and_untied_heads():
    tiny = presets.get("tiny")
    tied = Llama(dataclasses.replace(tiny, tied=True), rngs=nnx.Rngs(0))
    assert "lm_head" not in params_of(tied) and "lm_head" in params_of(Llama(tiny))
    hidden = jnp.ones((1, 2, tiny.embed_dim))
    np.testing.assert_allclose(
        tied.logits(hidden), hidden @ params_of(tied)["embed"].T, rtol=1e-5, atol=1e-5
    )
    # One row takes another path through the head.
    np.testing.assert_allclose(tied.logits(hidden)[:, :1], tied.logits(hidden[:, :1]), atol=1e-5)
