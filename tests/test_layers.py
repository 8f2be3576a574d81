"""Every layer against the same formula in float64 NumPy, written without looking at ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_nb import layers
from llama_nb.config import RopeScaling


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_rms_norm():
    x, gain = _random(0, 3, 5, 64), _random(1, 64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain
    got = layers.rms_norm(jnp.float32(x), jnp.float32(gain), 1e-5)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_rms_norm_of_zeros_is_zero_and_bfloat16_stays():
    x = jnp.zeros((2, 8), jnp.bfloat16)
    got = layers.rms_norm(x, jnp.ones(8), 1e-5)
    assert got.dtype == jnp.bfloat16 and not got.any()


def test_rms_norm_statistics_are_float32_in_bfloat16():
    x = jnp.asarray(100 * _random(2, 4, 4096), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    got = np.asarray(layers.rms_norm(x, jnp.ones(4096), 1e-5), np.float64)
    # One rounding to bfloat16 at the end: half a unit in the eighth bit.
    np.testing.assert_allclose(got, exact, rtol=2**-8)


def _rope_complex(x, positions, theta):
    """Rotate pair i (features i and i + H/2) as one complex number."""
    H = x.shape[-1]
    z = x[..., : H // 2] + 1j * x[..., H // 2 :]
    angles = positions[:, :, None, None] * theta ** (-2 * np.arange(H // 2) / H)
    z = z * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


def test_rope_at_arbitrary_positions():
    x = _random(3, 2, 5, 3, 16)
    positions = np.array([[0, 7, 3, 3, 100], [5, 4, 3, 2, 1]])
    cos, sin = layers.rope_angles(jnp.asarray(positions), layers.rope_frequencies(16, 10_000.0))
    got = layers.rope(jnp.float32(x), cos, sin)
    np.testing.assert_allclose(got, _rope_complex(x, positions, 10_000.0), atol=1e-5)


@given(shift=st.integers(0, 2000), gap=st.integers(0, 500), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rope_scores_depend_on_distance_only(shift, gap, seed):
    q, k = jnp.float32(_random(seed, 2, 1, 1, 1, 32))
    frequencies = layers.rope_frequencies(32, 500_000.0, RopeScaling())

    def score(at_q, at_k):
        turned = [
            layers.rope(x, *layers.rope_angles(jnp.array([[at]]), frequencies))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(gap + shift, shift) == pytest.approx(score(gap, 0), abs=5e-3)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_1_scaling_has_three_bands(factor):
    plain = layers.rope_frequencies(128, 500_000.0).astype(np.float64)
    scaled = layers.rope_frequencies(128, 500_000.0, RopeScaling(factor=factor))
    ratio, wavelength = plain / scaled, 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelength < 2048], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelength > 8192], factor, rtol=1e-6)
    between = ratio[(wavelength > 2048) & (wavelength < 8192)]
    assert len(between) > 3 and (np.diff(between) > 0).all()
    assert between.min() > 1 and between.max() < factor


def test_golden_frequencies_of_llama_3_1_and_3_2():
    eight = layers.rope_frequencies(128, 500_000.0, RopeScaling(factor=8.0))
    np.testing.assert_allclose(eight[0], 1.0)
    np.testing.assert_allclose(eight[63], 500_000.0 ** (-126 / 128) / 8, rtol=1e-6)
    wave = 2 * np.pi * 500_000.0 ** (64 / 128)  # pair 32: 4443 tokens, inside the band
    smooth = (8192 / wave - 1) / 3
    expected = 500_000.0**-0.5 * (smooth + (1 - smooth) / 8)
    np.testing.assert_allclose(eight[32], expected, rtol=1e-6)
    many = layers.rope_frequencies(64, 500_000.0, RopeScaling(factor=32.0))
    np.testing.assert_allclose(many[31], 500_000.0 ** (-62 / 64) / 32, rtol=1e-6)


def _attention_loops(q, k, v, mask):
    """One query of one head at a time."""
    out = np.zeros_like(q)
    B, T, N, H = q.shape
    group = N // k.shape[2]
    for b in range(B):
        for n in range(N):
            for t in range(T):
                seen = np.flatnonzero(mask[b, t])
                if len(seen) == 0:
                    continue
                scores = k[b, seen, n // group] @ q[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, n // group]
    return out


@pytest.mark.parametrize(("N", "K"), [(4, 4), (6, 2), (3, 1)])
def test_attention_with_a_ragged_causal_mask(N, K):
    q, k, v = _random(4, 2, 3, N, 8), _random(5, 2, 7, K, 8), _random(6, 2, 7, K, 8)
    mask = np.asarray(layers.causal_mask(jnp.array([0, 5]), 3, 3, 7))
    assert not mask[1, 0].any()  # before its text begins: nothing to see, and no NaN
    got = np.asarray(layers.attention(*map(jnp.float32, (q, k, v)), mask))
    assert np.isfinite(got).all()
    seen = mask.any(-1)
    np.testing.assert_allclose(got[seen], _attention_loops(q, k, v, mask)[seen], atol=1e-5)


def test_attention_agrees_with_jax_nn():
    q, k, v = (jnp.float32(_random(s, 2, 9, n, 16)) for s, n in ((7, 6), (8, 2), (9, 2)))
    mask = layers.causal_mask(jnp.zeros(2, jnp.int32), 0, 9, 9)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(layers.attention(q, k, v, mask), expected, atol=1e-5)


def test_attention_survives_huge_scores():
    q = jnp.full((1, 2, 1, 4), 1e4)
    out = layers.attention(q, q, jnp.ones((1, 2, 1, 4)))
    np.testing.assert_allclose(out, 1.0)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8])
def test_causal_attention_is_the_same_for_every_block(block):
    q, k, v = (jnp.float32(_random(s, 2, 5, n, 8)) for s, n in ((1, 4), (2, 2), (3, 2)))
    mask = layers.causal_mask(jnp.array([0, 2]), 0, 5, 5)
    expected = layers.attention(q, k, v, mask)
    got = layers.causal_attention(q, k, v, mask, block)
    seen = np.asarray(mask).any(-1)
    np.testing.assert_allclose(got[seen], expected[seen], atol=1e-6)


def test_causal_mask_by_hand():
    mask = layers.causal_mask(jnp.array([0, 2]), 2, 2, 5).astype(int)
    assert mask.tolist() == [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0]]]


def test_dense_contracts_leading_axes():
    x, w = _random(1, 2, 3, 4, 5), _random(2, 4, 5, 6)
    got = layers.dense(jnp.float32(x), jnp.float32(w), contract=2)
    np.testing.assert_allclose(got, np.einsum("btnh,nhd->btd", x, w), atol=1e-5)
    got = layers.dense(jnp.float32(x[..., 0, :]), jnp.float32(w.transpose(1, 0, 2)))
    np.testing.assert_allclose(
        got, np.einsum("bth,hnd->btnd", x[..., 0, :], w.transpose(1, 0, 2)), atol=1e-5
    )


def test_swiglu():
    gate, up = _random(1, 7), _random(2, 7)
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(
        layers.swiglu(jnp.float32(gate), jnp.float32(up)), expected, atol=1e-6
    )
