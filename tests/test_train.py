"""A step of training: what it computes does not depend on how it is cut or where it runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from llama_nb import presets, sharding
from llama_nb.data import Batch, pack, stack
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of
from llama_nb.train import Recipe, adamw, schedule, train_step
from llama_nb.train.optimizer import matrices
from llama_nb.train.step import losses

CONFIG = dataclasses.replace(presets.get("tiny"), num_heads=8, num_kv_heads=4)
PLAIN = Recipe(dtype="float32", keep="everything")
scored = jax.jit(functools.partial(losses, config=CONFIG, layout=None, recipe=PLAIN))
SGD = optax.sgd(1.0)


def fresh():
    return params_of(Llama(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    documents = (rng.integers(0, 256, n).astype(np.int32) for n in rng.integers(3, 40, 20))
    rows = [row for row in pack(documents, 24) if row.full]
    assert len(rows) >= 8
    return stack(rows[:8])


def step(batch, recipe=PLAIN, optimizer=SGD, layout=None):
    params = fresh()
    if layout is not None:
        places = sharding.param_shardings(CONFIG, layout.mesh, layout.strategy)
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.device_put(x, places[tuple(getattr(k, "key", None) for k in path)]),
            params,
        )
        batch = jax.tree.map(
            lambda x: jax.device_put(x, layout.sharding(x.shape, ("batch", None))), batch
        )
    state = optimizer.init(params)
    return train_step(
        params, state, batch, config=CONFIG, optimizer=optimizer, layout=layout, recipe=recipe
    )


@pytest.fixture(scope="module")
def plain(batch):
    params, _, numbers = step(batch)
    return jax.device_get(params), jax.device_get(numbers)


def same(found, expected, atol=1e-5):
    params, _, numbers = found
    for name in ("loss", "norm", "tokens"):
        np.testing.assert_allclose(numbers[name], expected[1][name], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("keep", ["nothing", pytest.param("products", marks=pytest.mark.slow)])
def test_what_is_kept_changes_nothing(batch, plain, keep):
    same(step(batch, dataclasses.replace(PLAIN, keep=keep)), plain)


@pytest.mark.parametrize("parts", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_parts_add_up_to_the_batch(batch, parts):
    """Also where parts have different numbers of targets."""
    weights = np.array(batch.weights)
    weights[1::2, 10:] = 0
    batch = dataclasses.replace(batch, weights=weights)
    same(step(batch, dataclasses.replace(PLAIN, accumulate=parts)), _bare(batch))


def _bare(batch):
    params, _, numbers = step(batch)
    return params, numbers


@pytest.mark.parametrize(
    ("mesh", "strategy"),
    [
        ((2, 4), "tp"),
        pytest.param((8, 1), "dp", marks=pytest.mark.slow),
        pytest.param((2, 4), "dp", marks=pytest.mark.slow),
        pytest.param((8, 1), "fsdp", marks=pytest.mark.slow),
        pytest.param((2, 4), "fsdp_tp", marks=pytest.mark.slow),
    ],
)
def test_on_a_mesh_it_is_the_same_step(batch, plain, mesh, strategy):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    layout = sharding.layout(CONFIG, sharding.make_mesh(mesh), strategy)
    same(step(batch, layout=layout), plain)
    if strategy == "fsdp":
        same(step(batch, dataclasses.replace(PLAIN, accumulate=2), layout=layout), plain)


@pytest.mark.slow
def test_packed_documents_are_separate_documents(batch):
    """The loss of every token is what it is when its document stands alone."""
    found, _ = scored(fresh(), dataclasses.replace(batch, weights=None))
    checked, T = 0, batch.tokens.shape[1]
    for row in range(3):
        for segment in range(1, batch.segments[row].max() + 1):
            here = batch.segments[row] == segment
            # What follows has no effect on it: one program for all lengths.
            after = (0, T - here.sum())
            alone = (np.pad(x[row][here], after)[None] for x in (batch.tokens, batch.targets))
            expected, _ = scored(fresh(), Batch(*alone))
            np.testing.assert_allclose(found[row][here], expected[0][: here.sum()], atol=2e-5)
            checked += 1
    assert checked > 4


@pytest.mark.slow
def test_weights_that_are_given_away_are_read_first():
    """On CPU jax 0.7.2 overwrote them before the backward pass was done with them."""
    config = dataclasses.replace(
        presets.get("tiny"), vocab_size=2048, embed_dim=256, ffn_dim=704, head_dim=64, tied=True
    )
    optimizer = adamw(1.5e-3, 400, 1)
    static = ("config", "optimizer", "layout", "recipe")
    kept = jax.jit(train_step.__wrapped__, static_argnames=static)
    found = []
    for step in (train_step, kept):
        params = jax.jit(lambda: params_of(Llama(config, rngs=nnx.Rngs(0))))()
        state = optimizer.init(params)
        for seed in range(4):
            rows = np.random.default_rng(seed).zipf(1.3, (8, 65)).clip(max=2047).astype(np.int32)
            batch = Batch(rows[:, :-1], rows[:, 1:])
            params, state, numbers = step(
                params, state, batch, config=config, optimizer=optimizer, recipe=PLAIN
            )
        found.append((jax.device_get(params), float(numbers["loss"])))
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)
    for a, b in zip(jax.tree.leaves(found[0][0]), jax.tree.leaves(found[1][0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_only_what_counts_is_learnt(batch):
    """Targets of weight 0 may be anything."""
    weights = np.array(batch.weights)
    weights[:, 5:] = 0
    other = np.where(weights > 0, batch.targets, 7)
    a, b = (dataclasses.replace(batch, targets=t, weights=weights) for t in (batch.targets, other))
    same(step(a), _bare(b))
    assert float(step(a)[2]["tokens"]) == 40


@pytest.mark.slow
def test_z_loss_pulls_the_denominator(batch):
    _, _, numbers = step(batch, dataclasses.replace(PLAIN, z_loss=1e-2))
    assert float(numbers["loss"]) == pytest.approx(float(step(batch)[2]["loss"]), rel=1e-6)
    after, *_ = step(batch, dataclasses.replace(PLAIN, z_loss=1e-2), optax.sgd(0.1))
    less, *_ = step(batch, PLAIN, optax.sgd(0.1))
    with_z, without = (scored(params, batch)[1] for params in (after, less))
    assert jnp.mean(with_z**2) < jnp.mean(without**2)


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart(batch):
    params, optimizer = fresh(), adamw(3e-3, 150, 10, decay=0.0)
    state = optimizer.init(params)
    for _ in range(150):
        params, state, numbers = train_step(
            params, state, batch, config=CONFIG, optimizer=optimizer, recipe=PLAIN
        )
    assert float(numbers["loss"]) < 0.3  # First tokens of documents can't be known.


@pytest.mark.slow
def test_bfloat16_is_near(batch, plain):
    _, _, numbers = step(batch, Recipe())
    assert float(numbers["loss"]) == pytest.approx(float(plain[1]["loss"]), rel=0.01)


def test_the_schedule():
    rate = schedule(1e-3, 100, 10, end=0.1)
    assert float(rate(0)) == 0 and float(rate(5)) == pytest.approx(5e-4)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(55)) == pytest.approx(5.5e-4, rel=0.01)
    assert float(rate(100)) == pytest.approx(1e-4)
    for bad in ((0, 100, 10), (1e-3, 10, 10), (1e-3, 10, -1)):
        with pytest.raises(InputError, match="are no schedule"):
            schedule(*bad)


def test_only_matrices_decay_and_gradients_are_clipped():
    params = {"norm": jnp.ones(4), "weight": jnp.ones((4, 4))}
    assert matrices(params) == {"norm": False, "weight": True}
    optimizer = adamw(1e-2, 10, 1, decay=0.5)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        updates, state = optimizer.update(zero, state, params)
    assert (updates["norm"] == 0).all()
    np.testing.assert_allclose(updates["weight"], -0.5 * 1e-2, rtol=1e-5)
    clip = adamw(1e-2, 10, 1, clip=1.0)
    large = jax.tree.map(lambda x: 1e6 * x, params)
    small = jax.tree.map(lambda x: x / jnp.sqrt(20.0), params)
    first, second = (clip.update(g, clip.init(params), params)[1] for g in (large, small))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"keep": "half"}, "keep 'half' is unknown; known: nothing, products, everything"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"z_loss": -1.0}, "z_loss -1.0"),
    ],
)
def test_what_is_no_recipe(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)
