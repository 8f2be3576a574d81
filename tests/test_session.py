"""Prefill, cached decoding and ragged batches against full recomputation without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_nb import presets
from llama_nb import session as sessions
from llama_nb.config import RopeScaling
from llama_nb.errors import InputError
from llama_nb.model import Llama, with_params
from llama_nb.sampling import Sampling
from llama_nb.session import Session

# Untrained weights of the usual scale give nearly flat logits: larger ones make ties impossible.
GAIN = 8.0


def _model(**changes):
    config = dataclasses.replace(presets.get("tiny"), **changes)
    params = sessions.params_of(Llama(config, rngs=nnx.Rngs(0)))
    return with_params(config, jax.tree.map(lambda x: x * GAIN if x.ndim > 1 else x, params))


@pytest.fixture(scope="module")
def model():
    return _model()


def _prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


@nnx.jit
def _full(model, tokens):
    return model(tokens)


def _greedy_without_cache(model, prompt, count, width=96):
    """Recompute everything for every token; padding on the right cannot be seen from the left."""
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(_full(model, padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def _greedy(model, prompts, count):
    session = Session(model, max(map(len, prompts)) + count)
    return np.array(list(session.tokens(session.feed(prompts), count))).T.tolist()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33])
def test_cached_decoding_equals_recomputation(model, length):
    prompt = _prompt(length)
    assert _greedy(model, [prompt], 12) == [_greedy_without_cache(model, prompt, 12)]


def test_logits_at_every_position(model):
    ids = _prompt(40)
    full = model(jnp.array([ids]))[0]
    session = Session(model)
    got = [session.feed([ids[:5]])[0]]
    for start, end in ((5, 6), (6, 23), (23, 39), (39, 40)):  # one token, buckets left over
        got.append(session.feed([ids[start:end]])[0])
    ends = np.array([5, 6, 23, 39, 40]) - 1
    np.testing.assert_allclose(jnp.stack(got), full[ends], atol=2e-4)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None)
def test_ragged_batch_equals_each_alone(lengths):
    model = _model()
    prompts = [_prompt(length, seed) for seed, length in enumerate(lengths)]
    together = _greedy(model, prompts, 8)
    assert together == [_greedy(model, [prompt], 8)[0] for prompt in prompts]


@pytest.mark.slow
def test_positions_past_8192_under_scaling():
    model = _model(
        context=131_072,
        rope_scaling=RopeScaling(),
        rope_theta=500_000.0,
        num_layers=1,
        vocab_size=64,
    )
    ids = np.random.default_rng(1).integers(0, 64, 8200).tolist()
    session = Session(model, capacity=8320)
    session.feed([ids[:8192]])
    got = [session.feed([[token]])[0] for token in ids[8192:]]
    # The last 64 positions of a recomputation with the true positions, over a window that holds
    # every key would need 8200 x 8200 scores; one row of them per position is enough.
    expected = _last_logits_by_rows(model, ids, range(8192, 8200))
    np.testing.assert_allclose(jnp.stack(got), expected, atol=2e-4)


def _last_logits_by_rows(model, ids, rows):
    """Full recomputation in NumPy float64 of a one-layer model, at chosen positions."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), sessions.params_of(model))
    config, (layer,) = model.config, params["layers"].values()
    x = params["embed"][np.array(ids)]

    def norm(x, gain):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * gain

    def rope(x, positions):
        H = config.head_dim
        frequencies = config.rope_theta ** (-2 * np.arange(H // 2) / H)
        wave = 2 * np.pi / frequencies
        s = config.rope_scaling
        smooth = (s.original_context / wave - s.low_freq_factor) / (
            s.high_freq_factor - s.low_freq_factor
        )
        smooth = np.clip(smooth, 0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / s.factor)
        z = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(
            1j * positions[:, None, None] * frequencies
        )
        return np.concatenate([z.real, z.imag], -1)

    h, at = norm(x, layer["attn_norm"]), np.arange(len(ids))
    k = rope(np.einsum("td,dkh->tkh", h, layer["attn"]["k_proj"]), at)
    v = np.einsum("td,dkh->tkh", h, layer["attn"]["v_proj"])
    out = []
    for row in rows:
        q = rope(np.einsum("td,dnh->tnh", h[[row]], layer["attn"]["q_proj"]), at[[row]])[0]
        mixed = np.zeros_like(q)
        for n in range(config.num_heads):
            scores = k[: row + 1, n // config.group_size] @ q[n] / np.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            mixed[n] = weights / weights.sum() @ v[: row + 1, n // config.group_size]
        y = x[row] + np.einsum("nh,nhd->d", mixed, layer["attn"]["o_proj"])
        z = norm(y, layer["mlp_norm"])
        gate = z @ layer["mlp"]["gate_proj"]
        mlp = gate / (1 + np.exp(-gate)) * (z @ layer["mlp"]["up_proj"])
        y = norm(y + mlp @ layer["mlp"]["down_proj"], params["norm"])
        out.append(params["lm_head"] @ y)
    return np.stack(out)


def test_few_programs_serve_all_lengths(model):
    compiled = []
    for length in range(1, 60, 3):
        _greedy(model, [_prompt(length)], 4)
        compiled.append(sessions.prefill._cache_size() + sessions.decode_step._cache_size())
    # Buckets 16 (before the first count), 24, 32, 48 and 64; one decode step serves them all.
    assert compiled[-1] - compiled[0] <= 4
    before = sessions.prefill._cache_size()
    _greedy(model, [_prompt(59, seed=3)], 4)
    assert sessions.prefill._cache_size() == before


def test_one_token_by_itself_is_not_padded(model, monkeypatch):
    shapes, extend = [], sessions.extend

    def watched(params, cache, tokens, count, **options):
        shapes.append(tokens.shape)
        return extend(params, cache, tokens, count, **options)

    monkeypatch.setattr(sessions, "extend", watched)
    session = Session(model, 64)
    session.feed([_prompt(4)])
    for length in (1, 2, 1):
        session.feed([_prompt(length)])
    assert shapes == [(1, 1), (1, sessions.MIN_BUCKET), (1, 1)]


def test_the_cache_is_donated(model):
    session = Session(model, 64)
    logits = session.feed([_prompt(4)])
    before = session.cache.keys[0]
    list(session.tokens(logits, 3))
    assert before.is_deleted()


@pytest.mark.slow
def test_stopping_early_forgets_the_step_ahead(model):
    prompt = _prompt(9)
    session = Session(model, 128)
    seen = []
    for token in session.tokens(session.feed([prompt]), 20):
        seen.append(int(token[0]))
        if len(seen) == 5:
            break
    assert session.used == 9 + 4
    logits = session.feed([[seen[-1], 7]])
    expected = model(jnp.array([[*prompt, *seen, 7]]))[0, -1]
    np.testing.assert_allclose(logits[0], expected, atol=2e-4)


@pytest.mark.slow
def test_a_session_fills_to_the_last_slot(model):
    prompt = _prompt(250)
    session = Session(model, 256)
    session.feed([prompt])
    logits = session.feed([_prompt(6, seed=1)])  # fewer free slots than the smallest bucket
    expected = model(jnp.array([[*prompt, *_prompt(6, seed=1)]]))[0, -1]
    np.testing.assert_allclose(logits[0], expected, atol=2e-4)
    with pytest.raises(InputError, match="do not fit"):
        session.feed([[1]])


def test_seeds(model):
    def run(seed):
        session = Session(model, 64)
        logits = session.feed([_prompt(5)])
        return [int(t[0]) for t in session.tokens(logits, 16, Sampling(temperature=1.0, seed=seed))]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_bfloat16_runs(model):
    half = Llama(model.config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    session = Session(half, 32)
    assert session.feed([[1, 2, 3]]).dtype == jnp.float32
    assert session.cache.keys[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([], "no prompt"),
        ([[]], "empty"),
        ([[1], []], "prompt 1 is empty"),
        ([[1, 256]], "token id 256"),
        ([[-1]], "token id -1"),
        ([[0] * 513], "context holds 512"),
    ],
)
def test_prompts_that_cannot_be_read(model, prompts, says):
    with pytest.raises(InputError, match=says):
        Session(model).feed(prompts)


def test_a_batch_continues_in_step(model):
    session = Session(model)
    session.feed([[1, 2], [3]])
    with pytest.raises(InputError, match="same number"):
        session.feed([[1, 2], [3]])
    with pytest.raises(InputError, match="2 sequences"):
        session.feed([[1]])
    with pytest.raises(InputError, match="do not fit"):
        next(session.tokens(jnp.zeros((2, 256)), 511))
    with pytest.raises(InputError, match="allows 1 to 512"):
        Session(model, 513)
