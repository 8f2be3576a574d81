import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_nb.errors import InputError
from llama_nb.sampling import Sampling, filter_logits, sample


def _filtered(logits, **settings):
    numbers = Sampling(**{"temperature": 1.0, **settings}).numbers()
    return np.asarray(jax.nn.softmax(filter_logits(jnp.float32(logits)[None], **numbers)[0]))


def _oracle(logits, temperature, top_k, top_p, min_p):
    """Which tokens stay, one at a time, in float64."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    weights = np.exp((np.array([logits[i] for i in order]) - max(logits)) / temperature)
    weights /= weights.sum()
    kept, total = [], 0.0
    for index, weight in zip(order, weights, strict=True):
        if total >= top_p and kept:
            break
        total += weight
        kept.append((index, weight))
    kept = [(i, w) for i, w in kept if w >= min_p * weights[0]]
    expected = np.zeros(len(logits))
    for i, w in kept:
        expected[i] = w
    return expected / expected.sum()


@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.15, 0.55, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.07, 0.4]),
)
@settings(max_examples=80, deadline=None)
def test_filters_against_an_oracle(seed, temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).standard_normal(30) * 2
    got = _filtered(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(got, _oracle(logits, temperature, top_k, top_p, min_p), atol=1e-5)


def test_the_likeliest_always_stays():
    logits = np.array([5.0, 4.9, 0.0])
    for settings_ in ({"top_p": 1e-9}, {"top_k": 1}, {"min_p": 0.999}, {"temperature": 1e-30}):
        np.testing.assert_allclose(_filtered(logits, **settings_), [1, 0, 0], atol=1e-6)


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    numbers = Sampling(temperature=1.0).numbers()
    draw = jax.jit(jax.vmap(lambda key: sample(logits, key, numbers, greedy=False)[0]))
    counts = np.bincount(draw(jax.random.split(jax.random.key(0), 20_000)), minlength=3)
    # Four standard deviations of a share of 20,000 draws are at most 0.0142.
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.3, 0.2], atol=0.0142)


def test_rows_draw_apart_and_greedy_ignores_the_key():
    logits = jnp.zeros((64, 50))
    numbers = Sampling(temperature=1.0).numbers()
    rows = sample(logits, jax.random.key(0), numbers, greedy=False)
    assert len(set(rows.tolist())) > 10
    assert sample(logits, jax.random.key(0), numbers, greedy=True).tolist() == [0] * 64


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.0},
        {"seed": -1},
    ],
)
def test_numbers_out_of_range(settings_):
    with pytest.raises(InputError, match=next(iter(settings_))):
        Sampling(**settings_)
