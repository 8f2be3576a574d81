"""Many tokens in one dispatch: those of the streaming step, stopped in time, and in place."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_nb import presets, quantize, sharding, steps
from llama_nb.cache import KVCache
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of, with_params
from llama_nb.sampling import Sampling
from llama_nb.session import Session
from tests.marks import slow

CONFIG = dataclasses.replace(presets.get("tiny"), num_heads=8, num_kv_heads=4)
PROMPTS = [[1, 2, 3], [7] * 20, [200, 100, 50, 25, 12], [9]]
SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=3)
KEY, NUMBERS = jax.random.key(3), SAMPLED.numbers()


@pytest.fixture(scope="module")
def params():
    # Larger than untrained weights are, so that no two tokens are nearly as likely.
    params = params_of(Llama(CONFIG, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)


@pytest.fixture(scope="module")
def model(params):
    return with_params(CONFIG, params)


def _session(model, prompts=PROMPTS, capacity=128, **options):
    session = Session(model, capacity, **options)
    return session, session.feed(prompts)


def _tokens(model, count, sampling=None, prompts=PROMPTS, **options):
    session, logits = _session(model, prompts)
    return np.stack(list(session.tokens(logits, count, sampling, **options)))


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [2, 7, 16, 64])
def test_the_same_tokens_as_one_by_one(model, sampling, chunk):
    found = _tokens(model, 33, sampling, chunk=chunk)
    assert found.shape == (33, 4) and found.dtype == np.int32
    np.testing.assert_array_equal(found, _tokens(model, 33, sampling))


@pytest.mark.parametrize("count", [1, 2, 8, 9])
def test_counts_around_a_chunk(model, count):
    np.testing.assert_array_equal(_tokens(model, count, chunk=8), _tokens(model, count))


@pytest.mark.parametrize("kind", [*slow("int8 weights"), "int8 cache"])
def test_few_bits(params, kind):
    if kind == "int8 weights":
        model, options = with_params(CONFIG, quantize.quantize(params)), {}
    else:
        model, options = with_params(CONFIG, params), {"cache_dtype": "int8"}
    found = []
    for chunk in (1, 6):
        session, logits = _session(model, **options)
        found.append(np.stack(list(session.tokens(logits, 20, SAMPLED, chunk=chunk))))
    np.testing.assert_array_equal(*found)


def _loop(model, prompts, stops, count, chunk):
    session, logits = _session(model, prompts)
    options = {"greedy": False, "layout": model.layout}
    stops = np.array(stops, np.int32)
    token, done = steps.first(logits, KEY, np.int32(session.used), NUMBERS, stops, **options)
    options |= {"config": CONFIG, "chunk": chunk, "attention": session.attention}
    arguments = (token, done, KEY, NUMBERS, stops, np.int32(count))
    return session, token, steps.decode_loop(session.params, session.cache, *arguments, **options)


@pytest.mark.parametrize("last", [1, 4, 9])
def test_it_stops_with_the_last_row(model, last):
    """Each row ends on a token of its own, the first time that any of them shows up."""
    wanted = _tokens(model, 16, SAMPLED)
    stops = [int(wanted[1 if row else last, row]) for row in range(4)]
    ends = [np.isin(wanted[:, row], stops).argmax() for row in range(4)]
    assert max(ends) <= last
    session, first, (chosen, ran, token, done, cache) = _loop(model, PROMPTS, stops, 15, 32)
    assert int(ran) == max(ends) and done.all()
    assert int(cache.length) == session.used + int(ran)
    np.testing.assert_array_equal(first, wanted[0])
    np.testing.assert_array_equal(np.asarray(chosen).T[: int(ran)], wanted[1 : int(ran) + 1])
    np.testing.assert_array_equal(token, wanted[int(ran)])
    for chunk in (1, 4, 32):
        found = _tokens(model, 16, SAMPLED, chunk=chunk, stop_ids=stops)
        np.testing.assert_array_equal(found, wanted[: max(ends) + 1])


def test_it_takes_no_step_when_the_first_token_ends_all(model):
    stops = _tokens(model, 1, SAMPLED)[0]
    session, _, (_, ran, _, done, cache) = _loop(model, PROMPTS, stops, 8, 8)
    assert int(ran) == 0 and done.all() and int(cache.length) == session.used


def test_it_takes_no_more_steps_than_asked(model):
    session, _, (chosen, ran, _, done, cache) = _loop(model, PROMPTS, [], 5, 8)
    assert int(ran) == 5 and not done.any() and int(cache.length) == session.used + 5
    assert not np.asarray(chosen)[:, 5:].any()


@pytest.mark.parametrize("seen", [1, 2, 5, 9, 20])
def test_leaving_early_forgets_the_rest_of_the_chunk(model, seen):
    def read(chunk):
        session, logits = _session(model)
        rows = session.tokens(logits, 20, chunk=chunk)
        token = [next(rows) for _ in range(seen)][-1]
        rows.close()
        assert session.used == 20 + seen - 1 == int(session.cache.length)
        return session.feed([[int(t), 7] for t in token])

    np.testing.assert_array_equal(read(8), read(1))


def test_nothing_is_compiled_again(model):
    """Neither a count, a setting, a prompt nor a further turn makes another program."""
    session, logits = _session(model, PROMPTS[:2])
    list(session.tokens(logits, 12, SAMPLED, chunk=8, stop_ids=(1, 2)))
    before = steps.decode_loop._cache_size(), steps.first._cache_size()
    for count, seed in ((3, 0), (8, 1), (9, 2), (20, 5)):
        logits = session.feed([[4, 5], [6, 7]])
        sampling = Sampling(temperature=0.7, top_p=0.8, seed=seed)
        list(session.tokens(logits, count, sampling, chunk=8, stop_ids=(7, 8)))
    assert (steps.decode_loop._cache_size(), steps.first._cache_size()) == before


def _compiled(model, batch=2, slots=256, chunk=8, dtype=jnp.float32):
    params = params_of(model)
    cache = jax.eval_shape(lambda: KVCache.create(CONFIG, batch, slots, dtype))
    row, scalar = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    done = jax.ShapeDtypeStruct((batch,), bool)
    options = {"config": CONFIG, "greedy": True}
    loop = steps.decode_loop.lower(
        *(params, cache, row, done, KEY, NUMBERS, row, scalar), chunk=chunk, **options
    ).compile()
    return loop, steps.decode_step.lower(params, cache, row, KEY, NUMBERS, **options).compile()


def test_the_cache_stays_where_it_is(model):
    loop, step = _compiled(model)
    shape = f"f32[2,{CONFIG.num_kv_heads},256,{CONFIG.head_dim}]"
    copies = re.findall(rf"= {re.escape(shape)}\S* copy(?:-start)?\(", loop.as_text())
    assert not copies and f"{shape}" in loop.as_text()
    arrays = 2 * CONFIG.num_layers
    cache = arrays * 2 * CONFIG.num_kv_heads * 256 * CONFIG.head_dim * 4
    assert loop.memory_analysis().alias_size_in_bytes >= cache
    # One copy of one array would show.
    room = loop.memory_analysis().temp_size_in_bytes - step.memory_analysis().temp_size_in_bytes
    assert room < cache / arrays
    session, logits = _session(model)
    before = session.cache.keys[0]
    list(session.tokens(logits, 3, chunk=2))
    assert before.is_deleted()


def test_weights_are_widened_in_the_step_and_not_before_the_loop(params):
    """XLA moves out of a loop what does not change in it, and here that would be wide weights.

    On jax 0.12 a CPU multiplies bfloat16 as it is: there nothing is wide.
    """
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    loop, _ = _compiled(with_params(CONFIG, params), dtype=jnp.bfloat16)
    _, entry = loop.as_text().split("\nENTRY ")
    assert f"bf16[{CONFIG.embed_dim},{CONFIG.ffn_dim}]" in entry  # as they arrive
    assert f"= f32[{CONFIG.embed_dim},{CONFIG.ffn_dim}]" not in entry


MESHES = [("auto", "2d", (2, 4)), ("auto", "tp", (1, 8)), ("explicit", "2d", (2, 4))]


@pytest.mark.parametrize(("axes", "strategy", "shape"), MESHES, ids=str)
def test_meshes(params, model, axes, strategy, shape):
    layout = sharding.layout(
        CONFIG, sharding.make_mesh(shape, explicit=axes == "explicit"), strategy
    )
    places = sharding.param_shardings(CONFIG, layout.mesh, strategy)

    def put(path, leaf):
        return jax.device_put(leaf, places[tuple(getattr(k, "key", None) for k in path)])

    split = with_params(CONFIG, jax.tree_util.tree_map_with_path(put, params), layout)
    session, logits = _session(split)
    expected = _tokens(model, 12)
    found = np.stack(list(session.tokens(logits, 12, chunk=5)))
    np.testing.assert_array_equal(found, expected)
    # A further turn compiles nothing.
    before = steps.decode_loop._cache_size()
    logits = session.feed([[int(t)] for t in found[-1]])
    more = np.stack(list(session.tokens(logits, 7, chunk=5)))
    assert steps.decode_loop._cache_size() == before
    np.testing.assert_array_equal(more, _tokens(model, 19)[12:])
    assert session.used == 20 + 18


def test_a_chunk_of_nothing_is_refused(model):
    session, logits = _session(model)
    for chunk in (0, -1, 2.5):
        with pytest.raises(InputError, match=f"chunk is {chunk}; it must be a whole number"):
            next(session.tokens(logits, 4, chunk=chunk))
