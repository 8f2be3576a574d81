"""The decode step by hand: on every mesh it is the package's own unsharded int8 step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from llama_nb import pod, presets, session
from llama_nb.errors import InputError
from llama_nb.kernels import matmul, matmul_tpu
from llama_nb.model import Llama, params_of
from llama_nb.quantize import quantize

# Eight query heads over four KV heads; V, F and D divide by eight.
CONFIG = dataclasses.replace(presets.get("tiny"), num_heads=8, num_kv_heads=4, ffn_dim=192)
CONFIGS = {
    "untied": CONFIG,
    "tied": dataclasses.replace(CONFIG, tied=True, num_kv_heads=2),
    "one head": dataclasses.replace(CONFIG, num_kv_heads=1),
    "no groups": dataclasses.replace(CONFIG, num_kv_heads=8),
}


def _mesh(model, spare):
    devices = np.asarray(jax.devices()[: model * spare]).reshape(model, spare)
    return Mesh(devices, pod.AXES, axis_types=(AxisType.Auto,) * 2)


def _params(config):
    params = params_of(Llama(config, rngs=nnx.Rngs(0)))
    # Weights of standard deviation 0.02 make logits of near ties; these don't.
    return quantize(jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params))


@functools.cache
def _expected(name, batch):
    """Return a prefilled cache and its next tokens, and what the package makes of them."""
    config, length = CONFIGS[name], 13
    params = _params(config)
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, config.vocab_size)
    starts = jnp.arange(batch, dtype=jnp.int32) % 7
    logits, cache = session.prefill(
        params,
        tokens,
        starts,
        jnp.int32(length),
        config=config,
        capacity=16,
        dtype=jnp.int8,
    )
    first = jax.device_get(cache)  # A copy: steps give their cache away.
    chosen = [np.asarray(logits.argmax(-1), np.int32)]
    for _ in range(3):
        token, cache = session.decode_step(
            params, cache, chosen[-1], jax.random.key(0), {}, config=config, greedy=True
        )
        chosen.append(np.asarray(token))
    return params, first, chosen, jax.device_get(cache)


@pytest.mark.parametrize(
    ("name", "model", "spare", "batch", "split"),
    [
        pytest.param("untied", 1, 1, 2, "batch", marks=pytest.mark.slow),
        ("untied", 4, 2, 4, "batch"),
        pytest.param("untied", 4, 2, 3, "slots", marks=pytest.mark.slow),
        pytest.param("untied", 2, 4, 1, "slots", marks=pytest.mark.slow),
        pytest.param("untied", 2, 2, 2, "batch", marks=pytest.mark.slow),
        pytest.param("tied", 2, 1, 3, "batch", marks=pytest.mark.slow),
        pytest.param("tied", 2, 4, 8, "batch", marks=pytest.mark.slow),
        pytest.param("tied", 2, 4, 2, "slots", marks=pytest.mark.slow),
        pytest.param("one head", 1, 8, 1, "slots", marks=pytest.mark.slow),
        pytest.param("one head", 1, 8, 8, "batch", marks=pytest.mark.slow),
        pytest.param("no groups", 8, 1, 2, "batch", marks=pytest.mark.slow),
    ],
)
def test_the_step_is_the_unsharded_step(name, model, spare, batch, split):
    check_step(name, model, spare, batch, split)


@pytest.mark.parametrize(
    ("name", "model", "spare", "batch", "split"),
    [
        ("untied", 4, 2, 4, "batch"),
        pytest.param("untied", 2, 4, 1, "slots", marks=pytest.mark.slow),
        pytest.param("tied", 1, 1, 3, "batch", marks=pytest.mark.slow),
    ],
)
def test_so_it_is_with_the_kernel(name, model, spare, batch, split):
    kernel = functools.partial(pod.kernel, interpret=True)
    check_step(name, model, spare, batch, split, attend=kernel)


def test_so_it_is_with_streamed_matrices(monkeypatch):
    kernel, seen = matmul_tpu.matmul, []

    def interpreted(rows, values, **options):
        seen.append(values.shape)
        return kernel(rows, values, **options, interpret=True)

    monkeypatch.setattr(matmul_tpu, "matmul", interpreted)
    monkeypatch.setattr(matmul, "LEAST_BYTES", 0)
    # A function of its own, since JAX remembers what it traced of another.
    product = lambda *args, **options: matmul.product(*args, **options)  # noqa: E731
    check_step("untied", 4, 2, 4, "batch", product=product)
    # qkv, o, gate and up, down, head: an eighth of each.
    assert set(seen) == {(64, 32), (16, 64), (64, 48), (24, 64), (32, 64)}


def check_step(name, model, spare, batch, split, **options):
    config, mesh = CONFIGS[name], _mesh(model, spare)
    assert pod.cache_split(batch, 16, spare) == split
    params, first, chosen, expected = _expected(name, batch)
    params = pod.fuse(params, mesh.size)
    params = jax.device_put(params, pod.shardings(params, mesh))
    cache = jax.device_put(first, pod.cache_shardings(first, mesh))
    token = chosen[0]
    for wanted in chosen[1:]:  # Slots 13, 14 and 15, the last.
        token, cache = pod.decode_step(params, cache, token, config=config, mesh=mesh, **options)
        np.testing.assert_array_equal(token, wanted)
    # A number on the edge between two steps of int8 may fall to either side, and what the next
    # layer makes of it differs by that much.
    new = slice(13, None)
    for side in ("key", "value"):
        for ours, theirs in zip(
            getattr(cache, f"{side}s"), getattr(expected, f"{side}s"), strict=True
        ):
            ours = np.asarray(ours)
            np.testing.assert_array_equal(ours[:, :, :13], theirs[:, :, :13])
            np.testing.assert_allclose(ours, theirs, atol=1)
            assert np.mean(ours[:, :, new] != theirs[:, :, new]) < 0.02
        for ours, theirs in zip(
            getattr(cache, f"{side}_scales"), getattr(expected, f"{side}_scales"), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_array_equal(cache.starts, expected.starts)
    assert cache.length == expected.length == 16


def test_what_does_not_divide_is_refused():
    cases = (
        ({"num_kv_heads": 2}, (4, 2), "2 KV heads can't be split into 4 equal parts"),
        ({"ffn_dim": 100}, (4, 2), "100 feed-forward features can't be split into 8"),
        ({"vocab_size": 250}, (4, 2), "250 entries of the vocabulary can't be split into 8"),
        ({"num_kv_heads": 1, "num_heads": 3, "head_dim": 6}, (1, 8), "18 features of the query"),
    )
    for change, shape, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            pod.check(dataclasses.replace(CONFIG, **change), _mesh(*shape))
    with pytest.raises(InputError, match=r"neither 3 sequences nor 18 slots .* 4 equal parts"):
        pod.cache_split(3, 18, 4)


def test_meshes_and_shapes():
    assert pod.make_mesh(CONFIG).shape == {"model": 4, "spare": 2}
    assert pod.make_mesh(presets.get("llama3.1-8b")).shape == {"model": 8, "spare": 1}
    assert pod.make_mesh(CONFIG, jax.devices()[:1]).shape == {"model": 1, "spare": 1}
    mesh = _mesh(4, 2)
    params, cache, *_ = _expected("untied", 4)
    shapes = pod.param_shapes(CONFIG, mesh, dtype=jnp.float32)
    fused = pod.fuse(params, 8)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, fused)
    assert all(jax.tree.leaves(same))
    shapes = pod.cache_shapes(CONFIG, mesh, 4, 16)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, cache)
    assert all(jax.tree.leaves(same))
    # Nothing large is on every chip.
    for shape in jax.tree.leaves((pod.param_shapes(CONFIG, mesh), shapes)):
        part = np.prod(shape.sharding.shard_shape(shape.shape))
        assert part == shape.size / 8 or shape.size <= CONFIG.embed_dim


@pytest.mark.parametrize(("batch", "split"), [(4, "batch"), (3, "slots")])
def test_without_int8_it_is_the_unsharded_step_too(batch, split):
    mesh, length = _mesh(4, 2), 13
    assert pod.cache_split(batch, 16, 2) == split
    params = params_of(Llama(CONFIG, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, CONFIG.vocab_size)
    starts = jnp.arange(batch, dtype=jnp.int32) % 7
    options = {"config": CONFIG, "capacity": 16, "dtype": jnp.dtype("float32")}
    logits, cache = session.prefill(params, tokens, starts, jnp.int32(length), **options)
    fused = pod.fuse(params, mesh.size)
    fused = jax.device_put(fused, pod.shardings(fused, mesh))
    theirs, ours = cache, jax.device_put(jax.device_get(cache), pod.cache_shardings(cache, mesh))
    wanted = token = np.asarray(logits.argmax(-1), np.int32)
    for _ in range(3):
        wanted, theirs = session.decode_step(
            params, theirs, wanted, jax.random.key(0), {}, config=CONFIG, greedy=True
        )
        token, ours = pod.decode_step(fused, ours, token, config=CONFIG, mesh=mesh)
        np.testing.assert_array_equal(token, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
