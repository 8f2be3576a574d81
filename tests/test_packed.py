"""int8 and packed bfloat16 matrices against the wide product."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llama_nb import layers, packed
from llama_nb.packed import Packed, to_int8


def _int8(shape, axes, seed=0):
    wide = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    values, scale = to_int8(wide, axes, np)
    scale = scale.squeeze(axes) if axes[0] == 0 else scale
    return Packed(jnp.asarray(values), jnp.asarray(scale)), values * scale


def _bits(shape, seed=0):
    wide = np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)
    return Packed(jnp.asarray(wide.view(np.uint16))), wide.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.sampled_from([(0,), (1,), (0, 1)]),
)
def test_every_number_is_within_half_a_scale(x, axes):
    values, scale = to_int8(x, axes, np)
    assert values.dtype == np.int8 and scale.dtype == np.float32
    assert abs(values.astype(int)).max() <= 127
    # float64, and a hair for the rounding of x / scale itself.
    error = abs(x.astype(np.float64) - values * scale.astype(np.float64))
    assert (error <= 0.5 * scale * (1 + 1e-4) + 1e-44).all()


def test_the_largest_number_keeps_its_value_and_zeros_stay_zero():
    x = np.array([[0.0, 0.0], [2.54, -1.27]], np.float32)
    values, scale = to_int8(x, 1, np)
    np.testing.assert_array_equal(values, [[0, 0], [127, -64]])
    np.testing.assert_allclose(scale[:, 0], [1.0, 0.02], rtol=1e-6)


def test_numpy_and_jax_round_alike():
    x = np.random.default_rng(0).standard_normal((64, 33)).astype(np.float32)
    for a, b in zip(to_int8(x, 0, np), jax.jit(to_int8, static_argnums=1)(x, 0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1)
    assert (to_int8(x, 0, np)[0] != np.asarray(to_int8(jnp.asarray(x), 0)[0])).mean() < 1e-3


@pytest.mark.parametrize("make", [lambda shape: _int8(shape, (0,)), _bits], ids=["int8", "bits"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("shape", [(1, 7), (2, 8), (37, 11), (64, 4, 16)])
def test_a_product_is_that_of_the_wide_matrix(monkeypatch, make, rows, shape):
    weight, wide = make(shape)
    x = np.random.default_rng(1).standard_normal((1, rows, shape[0])).astype(np.float32)
    expected = np.tensordot(x.astype(np.float64), wide.astype(np.float64), 1)
    for block in (1 << 21, 64):  # one block and a rest; many blocks and a rest
        monkeypatch.setattr(packed, "_BLOCK", block)
        jax.clear_caches()
        out = layers.dense(jnp.asarray(x), weight)
        assert out.dtype == jnp.float32 and out.shape == expected.shape
        np.testing.assert_allclose(out, expected, atol=2e-5)


def test_a_product_over_two_axes():
    weight, wide = _int8((4, 16, 24), (0, 1))
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 16)).astype(np.float32)
    expected = np.tensordot(x, wide, 2)
    np.testing.assert_allclose(layers.dense(jnp.asarray(x), weight, 2), expected, atol=3e-5)


@pytest.mark.parametrize("make", [lambda shape: _int8(shape, (1,)), _bits], ids=["int8", "bits"])
@pytest.mark.parametrize("rows", [1, 3])
def test_an_embedding_gives_rows_and_logits(monkeypatch, make, rows):
    monkeypatch.setattr(packed, "_BLOCK", 64)
    weight, wide = make((101, 8))
    tokens = jnp.asarray([[0, 100, 7]])
    np.testing.assert_array_equal(packed.take(weight, tokens, jnp.float32), wide[tokens])
    x = np.random.default_rng(1).standard_normal((1, rows, 8)).astype(np.float32)
    np.testing.assert_allclose(layers.unembed(jnp.asarray(x), weight), x @ wide.T, atol=1e-5)


def test_bits_are_exact():
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = every.view(ml_dtypes.bfloat16).astype(np.float32)
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(packed.unpack(Packed(jnp.asarray(every)))[finite], wide[finite])
    again = packed.unpack(Packed(jnp.asarray(every)), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(again)[finite].view(np.uint16), every[finite])


def test_no_wide_copy_of_all_matrices_at_once():
    """Forty matrices are widened one block at a time, not all before the first product."""
    weights = [_int8((256, 256), (0,), seed)[0] for seed in range(40)]

    def chain(x, weights):
        for weight in weights:
            x = layers.dense(x, weight)
        return x

    compiled = jax.jit(chain).lower(jnp.ones((1, 1, 256)), weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 256 * 256 * 4
