"""int8 models and caches against the wide ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_nb import layers, presets
from llama_nb.cache import KVCache
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of, with_params
from llama_nb.packed import Packed, to_int8, unpack
from llama_nb.perplexity import losses, perplexity
from llama_nb.quantize import int8_bytes, quantize, quantize_rows
from llama_nb.session import Session

TINY = presets.get("tiny")
TIED = dataclasses.replace(TINY, tied=True)
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 40))


def _is_packed(leaf):
    return isinstance(leaf, Packed)


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_the_same_model_code_runs_int8(config):
    """int8 is the model whose weights are the rounded ones: nothing else changes."""
    model = Llama(config, rngs=nnx.Rngs(0))
    small = quantize(params_of(model))
    rounded = jax.tree.map(lambda x: unpack(x) if _is_packed(x) else x, small, is_leaf=_is_packed)
    tokens = jnp.asarray(TOKENS)
    expected = with_params(config, rounded)(tokens)
    np.testing.assert_allclose(with_params(config, small)(tokens), expected, atol=1e-5)
    wide = model(tokens)
    assert 0 < abs(expected - wide).max() < 0.05 * abs(wide).max()


def test_every_matrix_is_int8_and_no_norm_is():
    small = quantize(params_of(Llama(TINY, rngs=nnx.Rngs(0))))
    for leaf in jax.tree.leaves(small, is_leaf=_is_packed):
        assert (leaf.values.dtype == jnp.int8) if _is_packed(leaf) else leaf.ndim == 1
    assert quantize(small)["embed"] is small["embed"]


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TIED, num_layers=5)])
def test_bytes_are_those_of_the_arrays(config):
    small = quantize(params_of(Llama(config, rngs=nnx.Rngs(0))))
    assert int8_bytes(config) == sum(leaf.nbytes for leaf in jax.tree.leaves(small))
    deep = dataclasses.replace(config, num_layers=100_000)  # counted without building them
    assert int8_bytes(deep) > 10_000 * int8_bytes(config)


def test_bytes_of_8b():
    # Half of bfloat16's 16.06 GB, and 7 MB of scales and norms.
    assert int8_bytes(presets.get("llama3.1-8b")) == pytest.approx(8.0376e9, rel=1e-4)


def test_quantize_rows_is_per_output():
    matrix = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    values, scale = quantize_rows(matrix)
    assert values.shape == (5, 30) and scale.shape == (5,)
    np.testing.assert_allclose(scale, abs(matrix).max(1) / 127, rtol=1e-6)
    assert (abs(matrix - values * scale[:, None]) <= scale[:, None] * 0.50001).all()


def test_scales_on_scores_are_scales_on_keys():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 4, 16)).astype(np.float32)
    k, v = (rng.standard_normal((2, 7, 2, 16)).astype(np.float32) for _ in range(2))
    (k8, ks), (v8, vs) = (to_int8(jnp.asarray(x), -1) for x in (k, v))
    expected = layers.attention(q, k8 * ks, v8 * vs)
    got = layers.attention(q, k8, v8, None, ks[..., 0], vs[..., 0])
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_int8_cache_decodes_what_a_wide_one_does_within_its_rounding():
    model = Llama(TINY, rngs=nnx.Rngs(0))
    logits = {}
    for dtype in (None, "int8"):
        session = Session(model, 64, cache_dtype=dtype)
        session.feed([list(row) for row in TOKENS[:, :20]])
        logits[dtype] = [session.feed([[t] for t in TOKENS[:, i]]) for i in range(20, 30)]
    wide, small = (np.stack(logits[dtype]) for dtype in (None, "int8"))
    assert 0 < abs(wide - small).max() < 0.02 * abs(wide).max()


def test_an_int8_cache_takes_the_bytes_it_says():
    cache = KVCache.create(TINY, 2, 32, jnp.int8)
    arrays = [*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales]
    per_token = 2 * TINY.num_layers * TINY.num_kv_heads * (TINY.head_dim + 4)
    assert sum(array.nbytes for array in arrays) == 2 * 32 * per_token


def test_losses_are_minus_log_probabilities():
    model = Llama(TINY, rngs=nnx.Rngs(0))
    tokens = TOKENS.ravel()[:50]
    found = losses(model, tokens, window=16)
    assert found.shape == (3, 15)
    for row, window in zip(found, tokens[:48].reshape(3, 16), strict=True):
        log_p = jax.nn.log_softmax(model(jnp.asarray(window[None]))[0])
        expected = [-log_p[i, token] for i, token in enumerate(window[1:])]
        np.testing.assert_allclose(row, expected, rtol=1e-5)
    through = losses(model, tokens, window=16, cache_dtype=jnp.float32)
    np.testing.assert_allclose(through, found, atol=1e-5)
    assert perplexity(model, tokens, window=16) == pytest.approx(np.exp(found.mean()), rel=1e-5)


@pytest.mark.parametrize("window", [1, 51, 1000])
def test_windows_that_cannot_be_filled(window):
    with pytest.raises(InputError, match=str(window)):
        losses(Llama(TINY, rngs=nnx.Rngs(0)), TOKENS.ravel()[:50], window=window)
