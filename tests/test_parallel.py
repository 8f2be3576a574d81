"""One model, many devices: under jit, on Explicit axes and by hand, always the unsharded result."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_nb import presets, sharding, tensor_parallel
from llama_nb.cache import KVCache
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of, with_params
from llama_nb.session import Session

CONFIG = dataclasses.replace(presets.get("tiny"), num_heads=8, num_kv_heads=4)
PROMPTS = [[1, 2, 3], [7] * 20, [200, 100, 50, 25, 12], [9]]
WAYS = [("auto", name) for name in sharding.STRATEGIES] + [
    ("explicit", name) for name in ("replicated", "dp", "tp", "2d")
]
ways = pytest.mark.parametrize(("axes", "strategy"), WAYS, ids=lambda value: value)


@pytest.fixture(scope="module")
def params():
    return params_of(Llama(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (8, 12)))


@pytest.fixture(scope="module")
def gradients(params, tokens):
    return jax.jit(jax.grad(lambda p: _loss(with_params(CONFIG, p)(tokens), tokens)))(params)


def _layout(strategy, shape=(2, 4), explicit=False, config=CONFIG):
    return sharding.layout(config, sharding.make_mesh(shape, explicit=explicit), strategy)


def _placed(params, layout):
    places = sharding.param_shardings(CONFIG, layout.mesh, layout.strategy)

    def put(path, leaf):
        return jax.device_put(leaf, places[tuple(getattr(k, "key", None) for k in path)])

    return jax.tree_util.tree_map_with_path(put, params)


def _loss(logits, tokens):
    """Mean cross-entropy of the next token; one-hot, since the vocabulary may be split."""
    chosen = jax.nn.one_hot(tokens[:, 1:], logits.shape[-1])
    return -(jax.nn.log_softmax(logits[:, :-1]) * chosen).sum(-1).mean()


def _same(found, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


def _collectives(compiled):
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    text = compiled.as_text()
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


@ways
def test_logits_and_gradients(params, tokens, gradients, axes, strategy):
    layout = _layout(strategy, explicit=axes == "explicit")
    logits = jax.jit(lambda p, t: with_params(CONFIG, p, layout)(t))
    placed = _placed(params, layout)
    _same(logits(placed, tokens), with_params(CONFIG, params)(tokens))
    found = jax.jit(jax.grad(lambda p: _loss(logits(p, tokens), tokens)))(placed)
    _same(found, gradients)
    gate = found["layers"][0]["mlp"]["gate_proj"]
    if axes == "explicit":  # There it is part of the type; Auto axes leave it to the compiler.
        assert gate.sharding == placed["layers"][0]["mlp"]["gate_proj"].sharding


@ways
def test_prefill_and_decode(params, axes, strategy):
    def run(layout, params):
        session = Session(with_params(CONFIG, params, layout), 64)
        logits = session.feed(PROMPTS)
        return np.asarray(logits), np.stack(list(session.tokens(logits, 8))), session.cache

    layout = _layout(strategy, explicit=axes == "explicit")
    logits, chosen, cache = run(layout, _placed(params, layout))
    expected_logits, expected, whole = run(None, params)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_array_equal(chosen, expected)
    _same(cache.keys, whole.keys)
    split = {"replicated": 1, "dp": 2, "tp": 8, "2d": 4, "fsdp": 2, "fsdp_tp": 8}[strategy]
    parts = {shard.data.size for shard in cache.keys[0].addressable_shards}
    assert parts == {cache.keys[0].size // split}


@pytest.mark.parametrize("shape", [(2, 4), (8, 1), (1, 4), (1, 8)], ids=str)
def test_by_hand(params, tokens, gradients, shape):
    layout = _layout("tp", shape)
    forward = jax.jit(lambda p, t: tensor_parallel.forward(p, t, config=CONFIG, layout=layout))
    placed = _placed(params, layout)
    expected = with_params(CONFIG, params)(tokens)
    _same(forward(placed, tokens), expected)
    _same(jax.jit(jax.grad(lambda p: _loss(forward(p, tokens), tokens)))(placed), gradients)
    extend = jax.jit(lambda p, c, t: tensor_parallel.extend(p, c, t, config=CONFIG, layout=layout))
    cache = KVCache.create(CONFIG, tokens.shape[0], 32)
    logits, cache = extend(placed, cache, tokens[:, :10])
    _same(logits, expected[:, 9])
    for position in (10, 11):
        logits, cache = extend(placed, cache, tokens[:, position : position + 1])
        _same(logits, expected[:, position])
    assert cache.length == 12


def test_two_sums_a_layer_and_nothing_else(params, tokens):
    layout = _layout("tp")
    placed = _placed(params, layout)
    forward = jax.jit(lambda p, t: tensor_parallel.forward(p, t, config=CONFIG, layout=layout))
    found = _collectives(forward.lower(placed, tokens).compile())
    assert found.pop("all-reduce") == 2 * CONFIG.num_layers + 1  # one for the embedding
    assert not any(found.values())
    # Under jit the compiler finds them by itself.
    places = layout.sharding(tokens.shape, ("batch", None))
    logits = jax.jit(lambda p, t: with_params(CONFIG, p, layout)(t))
    found = _collectives(logits.lower(placed, jax.device_put(tokens, places)).compile())
    assert found.pop("all-reduce") == 2 * CONFIG.num_layers + 1
    assert not any(found.values())


def test_fsdp_gathers_weights_and_scatters_nothing_else(params, tokens):
    layout = _layout("fsdp")
    tokens = jax.device_put(tokens, layout.sharding(tokens.shape, ("batch", None)))
    logits = jax.jit(lambda p, t: with_params(CONFIG, p, layout)(t))
    found = _collectives(logits.lower(_placed(params, layout), tokens).compile())
    assert found["all-gather"] >= 7 * CONFIG.num_layers
    assert found["all-reduce"] == 0


def test_more_devices_than_kv_heads(params):
    """The spare factor of a model axis splits the cache: sequences, or else slots."""
    layout = _layout("tp", (1, 8))
    assert dict(layout.mesh.shape) == {"data": 1, "model": 4, "spare": 2}
    for batch, axes in ((4, {0: "spare", 1: "model"}), (3, {1: "model", 2: "spare"})):
        cache = jax.jit(lambda b=batch: KVCache.create(CONFIG, b, 64, layout=layout))()
        spec = [*cache.keys[0].sharding.spec, None, None, None]
        assert {i: name for i, name in enumerate(spec) if name} == axes
        session = Session(with_params(CONFIG, _placed(params, layout), layout), 64)
        alone = Session(with_params(CONFIG, params), 64)
        logits, expected = session.feed(PROMPTS[:batch]), alone.feed(PROMPTS[:batch])
        _same(logits, expected)
        np.testing.assert_array_equal(
            np.stack(list(session.tokens(logits, 6))), np.stack(list(alone.tokens(expected, 6)))
        )


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 2}, 4, "6 query heads can't be split into 4 equal parts"),
        ({"ffn_dim": 182}, 4, "182 feed-forward features can't be split into 4 equal parts"),
        ({"vocab_size": 254}, 4, "254 entries of the vocabulary can't be split into 4"),
        ({}, 3, "3 sequences of the batch can't be split into 2 equal parts.*data=2, model=4"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(changes, batch, message):
    config = dataclasses.replace(CONFIG, **changes)
    model = Llama(config, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=message):
        tensor_parallel.forward(
            params_of(model),
            jnp.zeros((batch, 4), jnp.int32),
            config=config,
            layout=_layout("tp", config=config),
        )


def test_what_a_layout_refuses(params, tokens):
    mesh = sharding.make_mesh((2, 4), explicit=True)
    with pytest.raises(InputError, match="2 KV heads can't be split into 4 equal parts"):
        sharding.layout(presets.get("tiny"), mesh, "tp")
    with pytest.raises(InputError, match="'fsdp' gathers weights"):
        sharding.layout(CONFIG, mesh, "fsdp")
    with pytest.raises(InputError, match=r"axes data and model; this one has \('x',\)"):
        sharding.layout(CONFIG, jax.make_mesh((8,), ("x",), axis_types=(mesh.axis_types[0],)), "tp")
    with pytest.raises(InputError, match="'pipeline' is unknown; known: replicated, dp, tp"):
        sharding.layout(CONFIG, mesh, "pipeline")
    with pytest.raises(InputError, match="by hand the strategy is 'tp', not 'fsdp'"):
        tensor_parallel.forward(params, tokens, config=CONFIG, layout=_layout("fsdp"))
