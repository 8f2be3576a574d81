"""What is trained learns, what is frozen stays, and the change can be added to the weights."""

import dataclasses
import json

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import llama_nb
from llama_nb import data, presets, sharding
from llama_nb.checkpoint.save import save
from llama_nb.data import Batch
from llama_nb.errors import InputError
from llama_nb.lora import LowRank
from llama_nb.model import Llama, params_of, with_params
from llama_nb.packed import Packed
from llama_nb.quantize import quantize
from llama_nb.train import Recipe, adamw, evaluate, train_step
from llama_nb.train.run import Run, Settings
from llama_nb.train.start import fingerprint
from llama_nb.train.step import losses
from llama_nb.train.tuning import TARGETS, Full, Lora, Norms, combine, count, divide, merge

CONFIG = dataclasses.replace(presets.get("tiny"), embed_dim=32, ffn_dim=64)
PLAIN = Recipe(dtype="float32", keep="everything")
EVERY = Lora(rank=2, alpha=4.0, targets=tuple(TARGETS))
KINDS = [Full(), Norms(), EVERY]
NAMES = ["full", "norms", "lora"]
SETTINGS = Settings(steps=6, batch=4, T=16, peak=0.01, warmup=2, recipe=PLAIN)


@pytest.fixture(scope="module")
def weights():
    """Return random weights, at a seed that no run has."""
    return jax.device_get(params_of(Llama(CONFIG, rngs=nnx.Rngs(5))))


@pytest.fixture(scope="module")
def batch():
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (4, 17)).astype(np.int32)
    return Batch(ids[:, :-1], ids[:, 1:])


def same(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def learn(params, frozen, batch, steps=3, optimizer=None, **options):
    optimizer = optimizer or adamw(0.01, 10, 1)
    state, numbers = optimizer.init(params), []
    for _ in range(steps):
        params, state, row = train_step(
            params,
            state,
            batch,
            config=CONFIG,
            optimizer=optimizer,
            frozen=frozen,
            **{"recipe": PLAIN, **options},
        )
        numbers.append(float(row["loss"]))
    return params, state, numbers


def loss_of(params, batch):
    found, _ = losses(params, batch, config=CONFIG, layout=None, recipe=PLAIN)
    return float(found.mean())


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_two_parts_are_the_whole(weights, kind):
    trainable, frozen = divide(weights, kind)
    whole = combine(trainable, frozen)
    if kind is not EVERY:
        same(whole, weights)
    same(merge(whole), weights)  # b = 0.
    for leaf in jax.tree.leaves(trainable):
        assert leaf.dtype == jnp.float32
    kept = {id(leaf) for leaf in jax.tree.leaves(weights)}
    assert all(id(leaf) in kept for leaf in jax.tree.leaves(frozen))
    assert not any(id(leaf) in kept for leaf in jax.tree.leaves(trainable))


def test_what_is_counted(weights):
    D, N, K, H = CONFIG.embed_dim, CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim
    L, F = CONFIG.num_layers, CONFIG.ffn_dim
    norms = divide(weights, Norms())[0]
    assert len(jax.tree.leaves(norms)) == 2 * L + 1 and count(norms) == (2 * L + 1) * D
    assert count(divide(weights, Full())[0]) == CONFIG.param_count()
    found = divide(weights, Lora(rank=4))[0]
    assert count(found) == L * 4 * ((D + N * H) + (D + K * H))
    sides = 2 * (D + N * H) + 2 * (D + K * H) + 3 * (D + F)
    assert count(divide(weights, EVERY)[0]) == L * 2 * sides


def test_adapters_are_drawn_as_the_paper_does(weights):
    wide = {"q_proj": jnp.zeros((400, 8, 25)), "o_proj": jnp.zeros((8, 25, 400))}
    for name, inputs in (("q_proj", 400), ("o_proj", 200)):
        kind = Lora(rank=50, alpha=16.0, targets=(name,))
        found = divide(wide, kind)[0][name]
        assert (found.b == 0).all() and found.scale == 16 / 50
        assert float(found.a.std()) == pytest.approx(inputs**-0.5, rel=0.02)
        assert abs(float(found.a.mean())) < 0.001
        same(divide(wide, kind)[0][name], found)
        assert not np.allclose(divide(wide, kind, seed=1)[0][name].a, found.a)
    layers = divide(weights, EVERY)[0]["layers"]
    assert not np.allclose(layers[0]["attn"]["q_proj"].a, layers[1]["attn"]["q_proj"].a)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_only_what_is_trainable_moves(weights, batch, kind):
    trainable, frozen = divide(weights, kind)
    before = jax.device_get(trainable)
    frozen = jax.tree.map(jnp.asarray, frozen)
    kept = jax.device_get(frozen)
    after, state, numbers = learn(trainable, frozen, batch)
    assert numbers[0] == pytest.approx(loss_of(weights, batch), rel=1e-6)
    assert numbers[-1] < numbers[0]
    same(frozen, kept)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved))
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * count(after)


def test_full_is_what_it_was(weights, batch):
    """A step of the whole tree and one of all its parts, none of them frozen."""
    ours = learn(*divide(weights, Full()), batch)
    theirs = learn(jax.tree.map(jnp.array, weights), None, batch)
    same(ours, theirs)


@pytest.mark.slow
def test_adapters_follow_the_chain_rule_of_the_whole_weight(weights, batch):
    """dA = scale dW b^T and dB = scale a^T dW."""
    trainable, frozen = divide(weights, EVERY)
    trainable = jax.tree.map(
        lambda x: x + 0.01 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), trainable
    )
    merged = merge(combine(trainable, frozen))
    before = jax.device_get(trainable)
    sgd = optax.sgd(1.0)
    step = learn(jax.tree.map(jnp.array, merged), None, batch, 1, sgd)[0]
    whole = jax.tree.map(jnp.subtract, merged, step)
    after = jax.device_get(learn(trainable, frozen, batch, 1, sgd)[0])
    for layer, tree in enumerate(before["layers"].values()):
        for part in ("attn", "mlp"):
            for name in tree[part].keys() & TARGETS.keys():
                old, new = (t["layers"][layer][part][name] for t in (before, after))
                dW = whole["layers"][layer][part][name].reshape(-1, old.b[0].size)
                a, b = old.a.reshape(-1, 2), old.b.reshape(2, -1)
                for mine, exact in ((old.a - new.a, dW @ b.T), (old.b - new.b, a.T @ dW)):
                    np.testing.assert_allclose(mine.ravel(), 2 * exact.ravel(), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS[1:], ids=NAMES[1:])
def test_parts_add_up(weights, batch, kind):
    whole = learn(*divide(weights, kind), batch, 1, optax.sgd(1.0))
    recipe = dataclasses.replace(PLAIN, accumulate=2, keep="nothing")
    parts = learn(*divide(weights, kind), batch, 1, optax.sgd(1.0), recipe=recipe)
    same(whole[0], parts[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_base_in_few_bits(weights, batch, dtype):
    """int8 or bfloat16 under adapters: what is frozen keeps its bits."""
    for base in (quantize(weights), jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), weights)):
        trainable, frozen = divide(base, Lora(targets=("q_proj", "o_proj", "down_proj")))
        kept = jax.device_get(frozen)
        after, _, numbers = learn(
            trainable, frozen, batch, 4, recipe=dataclasses.replace(PLAIN, dtype=dtype)
        )
        assert numbers[-1] < numbers[0]
        same(frozen, kept)
        plain = merge(combine(after, frozen))
        assert not any(
            isinstance(leaf, LowRank | Packed)
            for leaf in jax.tree.leaves(plain, is_leaf=lambda x: isinstance(x, LowRank | Packed))
        )
        # A base of bfloat16 rounds the sum, too.
        assert loss_of(plain, batch) == pytest.approx(
            loss_of(combine(after, frozen), batch),
            rel=1e-3 if isinstance(base["embed"], Packed) else 0.01,
        )


@pytest.mark.slow
def test_merged_and_apart_say_the_same(tmp_path):
    """Adapters apart, added to the weights, and added, saved and loaded: the same tokens."""
    documents = [{"text": f"The {a} runs {n} times."} for a in ("cat", "llama") for n in range(9)]
    tokenizer = data.train_bpe(documents, 270)
    config = dataclasses.replace(CONFIG, vocab_size=270)
    start = params_of(Llama(config, rngs=nnx.Rngs(5)))
    ids = data.tokenize(datasets.Dataset.from_list(documents), tokenizer)
    settings = dataclasses.replace(SETTINGS, steps=12, peak=0.05)
    found = Run(tmp_path / "run", config, ids, settings, start=start, tune=EVERY)
    list(found)
    apart = combine(found.params, found.frozen)
    save(tmp_path / "model", config, found.weights(), tokenizer, dtype="float32")
    said = [
        llama_nb.generate(model, tokenizer, "The llama", max_new_tokens=24, temperature=0.0)
        for model in (
            with_params(config, apart),
            with_params(config, found.weights()),
            llama_nb.load(tmp_path / "model", dtype="float32")[0],
            with_params(config, start),
        )
    ]
    assert said[0] == said[1] == said[2] != said[3]
    scores = [
        evaluate(params, config, ids, T=16).loss for params in (apart, found.weights(), start)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert scores[0] < scores[2] - 0.1


def corpus():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 256, n).tolist() for n in rng.integers(5, 60, 40)]
    return datasets.Dataset.from_dict({"ids": ids})


def run(folder, tune, **options):
    return Run(folder, CONFIG, corpus(), SETTINGS, save_every=2, tune=tune, **options)


def logged(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[name] for name in ("step", "loss", "norm")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_run_is_taken_up_bit_for_bit(weights, tmp_path, kind):
    start = jax.tree.map(jnp.asarray, weights)
    whole = run(tmp_path / "whole", kind, start=start)
    list(whole)
    first = run(tmp_path / "run", kind, start=start)
    for row in first:
        if row["step"] == 3:
            break
    first.close()
    again = run(tmp_path / "run", kind, start=start, resume=True)
    assert again.step == 2
    list(again)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    same(again.params, whole.params)
    same(again.weights(), whole.weights())
    same(start, weights)  # What was given is still there.
    other = merge(combine(again.params, again.frozen))
    same(again.weights(), other)


@pytest.mark.slow
def test_checkpoints_hold_only_what_is_trained(weights, tmp_path):
    sizes = {}
    for kind in (Full(), Lora(rank=1, targets=("v_proj",))):
        folder = tmp_path / type(kind).__name__
        found = run(folder, kind, start=weights)
        list(found)
        files = (folder / "checkpoints/6/state").rglob("*")
        sizes[kind] = sum(f.stat().st_size for f in files if f.is_file() and "d" in f.parent.name)
        arrays = 4 * 3 * count(found.params)  # Weights, and two moments.
        assert sizes[kind] < 2 * arrays + 20_000
    full, lora = sizes.values()
    assert full > 10 * lora


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "strategy"), [((2, 4), "fsdp_tp"), ((2, 4), "tp"), ((4, 2), "fsdp")]
)
def test_runs_on_meshes_learn_the_same(weights, tmp_path, mesh, strategy):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    config = dataclasses.replace(CONFIG, num_heads=8, num_kv_heads=4)
    start = jax.device_get(params_of(Llama(config, rngs=nnx.Rngs(5))))
    settings = dataclasses.replace(SETTINGS, batch=8)
    layout = sharding.layout(config, sharding.make_mesh(mesh), strategy)
    runs = [
        Run(tmp_path / name, config, corpus(), settings, tune=EVERY, start=base, layout=place)
        for name, base, place in (
            ("one", start, None),
            ("many", start, layout),
            ("int8", quantize(start), None),
            ("int8s", quantize(start), layout),
        )
    ]
    for found in runs[1::2]:  # `a` lies as the inputs of its weight, `b` as the outputs.
        for name, inputs in (("q_proj", 1), ("o_proj", 2)):
            one = found.params["layers"][0]["attn"][name]
            base = found.frozen["layers"][0]["attn"][name].base
            spec = getattr(base, "values", base).sharding.spec
            assert tuple(one.a.sharding.spec) == (*spec[:inputs], None)
            assert tuple(one.b.sharding.spec) == (None, *spec[inputs:])
    for each in runs:
        list(each)
    for one, many in (("one", "many"), ("int8", "int8s")):
        np.testing.assert_allclose(logged(tmp_path / many), logged(tmp_path / one), rtol=1e-3)
    same(runs[1].weights(), runs[0].weights(), atol=1e-3)


def test_weights_have_a_fingerprint(weights):
    first = fingerprint(weights)
    assert first == fingerprint(jax.tree.map(jnp.asarray, weights)) and len(first) == 16
    other = jax.tree.map(np.array, weights)
    other["layers"][1]["attn"]["q_proj"][0, 0, 0] += 1e-6
    assert fingerprint(other) != first
    other["layers"][1]["attn"]["q_proj"] = weights["layers"][1]["attn"]["q_proj"][::-1]
    assert fingerprint(other) != first
    assert fingerprint(quantize(weights)) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("query",)}, "'query' is no projection; choose targets among q_proj, k_proj"),
        ({"targets": ()}, "no projection is named; choose targets among"),
        ({"rank": 0}, "rank is 0 and alpha 16.0; the rank must be at least 1"),
        ({"alpha": 0.0}, "alpha a number other than 0"),
        ({"alpha": float("nan")}, "alpha nan"),
    ],
)
def test_what_is_no_adapter(options, message):
    with pytest.raises(InputError, match=message):
        Lora(**options)


def test_what_can_not_be_tuned(weights, tmp_path):
    with pytest.raises(InputError, match="a rank of 33 is more than q_proj has: its smaller side"):
        run(tmp_path, Lora(rank=33))
    with pytest.raises(InputError, match="kept in int8 and can't be trained so"):
        run(tmp_path, Full(), start=quantize(weights))
    other = params_of(Llama(dataclasses.replace(CONFIG, ffn_dim=48)))
    with pytest.raises(
        InputError, match=r"another config: layers.0.mlp.\w+ is \(.*48.*\), and \(.*64.*\) is exp"
    ):
        run(tmp_path, Norms(), start=other)
    short = {**weights, "layers": {0: weights["layers"][0]}}
    with pytest.raises(InputError, match=r"layers.1.\S+ is not there"):
        run(tmp_path, Norms(), start=short)
    with pytest.raises(InputError, match=r"more is \(2,\), and nothing is expected"):
        run(tmp_path, Norms(), start={**weights, "more": jnp.ones(2)})
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_tuning(weights, tmp_path):
    run(tmp_path / "run", EVERY, start=weights).close()
    for kind, message in (
        (None, "tune.kind = lora, and full was asked for"),
        (Norms(), "tune.kind = lora, and norms was"),
        (dataclasses.replace(EVERY, rank=4), "tune.rank = 2, and 4 was"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path / "run", kind, start=weights, resume=True)
    with pytest.raises(InputError, match=r"tune.start = \w{16}, and None was asked for"):
        run(tmp_path / "run", EVERY, resume=True)
