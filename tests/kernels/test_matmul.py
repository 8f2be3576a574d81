"""Rows times int8 matrices by the TPU kernel: interpreted against NumPy, and who uses it when."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_nb import aot, attending, kernels, layers, packed, presets, sharding
from llama_nb.cache import KVCache
from llama_nb.kernels import matmul, matmul_tpu
from llama_nb.kernels.choice import Choice
from llama_nb.model import Llama, params_of, with_params
from llama_nb.packed import Packed
from llama_nb.quantize import quantize

TPU = Choice("pallas", "tpu", "TPU v5 lite")


def _case(M, inputs, outputs, outputs_first, dtype="float32"):
    rng = np.random.default_rng(M + inputs + outputs)
    rows = jnp.asarray(rng.standard_normal((M, inputs)), dtype)
    values = rng.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    wanted = np.asarray(rows, np.float64) @ values.astype(np.float64)
    return rows, jnp.asarray(values.T if outputs_first else values), wanted


@pytest.fixture
def small_blocks(monkeypatch):
    """Of 128 inputs and 256 outputs."""
    monkeypatch.setattr(matmul_tpu, "_BLOCK_BYTES", 2**15)
    monkeypatch.setattr(matmul_tpu, "_MOST_INPUTS", 128)


@pytest.mark.parametrize("outputs_first", [False, True])
@pytest.mark.parametrize("M", [1, 8, 64])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(384, 512), (256, 1000), (384, 130), (100, 37), (33, 700), (128, 1)],
)
def test_odd_shapes(small_blocks, M, inputs, outputs, outputs_first):
    rows, values, wanted = _case(M, inputs, outputs, outputs_first)
    got = matmul_tpu.matmul(rows, values, outputs_first=outputs_first, interpret=True)
    assert got.dtype == jnp.float32 and got.shape == (M, outputs)
    np.testing.assert_allclose(got, wanted, atol=2e-6 * np.abs(wanted).max(), rtol=0)


def test_bfloat16_rows_are_multiplied_exactly_and_added_in_float32(small_blocks):
    rows, values, wanted = _case(8, 384, 300, False, "bfloat16")
    got = matmul_tpu.matmul(rows, values, interpret=True)
    np.testing.assert_allclose(got, wanted, atol=2e-6 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(4096, 14336), (14336, 4096), (8192, 8016), (100, 10**6), (2048, 64)]
)
def test_blocks_fit_and_divide(inputs, outputs):
    across, along = matmul_tpu.blocks(inputs, outputs)
    assert inputs % across == 0 and (across % 128 == 0 or across == inputs)
    assert along == outputs or along % 128 == 0
    assert across * along <= matmul_tpu._BLOCK_BYTES


@pytest.mark.parametrize("M", [1, 3, 64])
@pytest.mark.parametrize("least", [0, matmul.LEAST_BYTES], ids=["kernel", "xla"])
def test_layers_multiply_with_it(monkeypatch, small_blocks, M, least):
    """Small matrices stay with XLA, and both are what `dense` and `unembed` make without it."""
    kernel, seen = matmul_tpu.matmul, []

    def interpreted(rows, values, **options):
        seen.append(rows.shape[0])
        return kernel(rows, values, **options, interpret=True)

    monkeypatch.setattr(matmul_tpu, "matmul", interpreted)
    monkeypatch.setattr(matmul, "LEAST_BYTES", least)
    rng = np.random.default_rng(M)
    # A function of its own, since JAX remembers what it traced of another.
    product = lambda *args, **options: matmul.product(*args, **options)  # noqa: E731
    x = jnp.asarray(rng.standard_normal((M, 1, 4, 96)), jnp.float32)
    weight = rng.standard_normal((4, 96, 200)).astype(np.float32)
    weight = Packed(*map(jnp.asarray, packed.to_int8(weight, (0, 1), np)))
    weight = dataclasses.replace(weight, scale=weight.scale.squeeze((0, 1)))
    wanted = layers.dense(x, weight, 2)
    np.testing.assert_allclose(layers.dense(x, weight, 2, product), wanted, rtol=0, atol=2e-4)
    table = Packed(
        *map(jnp.asarray, packed.to_int8(rng.standard_normal((300, 384), np.float32), 1, np))
    )
    y = x.reshape(M, 1, 384)
    wanted = layers.unembed(y, table)
    np.testing.assert_allclose(layers.unembed(y, table, product), wanted, rtol=0, atol=2e-4)
    assert seen == ([max(M, 8)] * 2 if least == 0 else [])


@pytest.mark.slow
def test_the_model_multiplies_all_matrices_with_it(monkeypatch):
    """Queries and outputs, keys and values, gate and up, down, head: logits are as without it."""
    config = presets.get("tiny")
    params = quantize(params_of(Llama(config, rngs=nnx.Rngs(0))))
    tokens = jnp.array([[3], [5]])
    wanted = jax.jit(lambda params: with_params(config, params)(tokens))(params)
    seen = []

    def product(rows, values, outputs_first=False):
        seen.append(values.shape)
        return matmul.product(rows, values, outputs_first)

    monkeypatch.setattr(attending, "product", lambda choice, layout, rows: product)

    @jax.jit
    def step(params):
        model = with_params(config, params)
        return model.logits(model.hidden(tokens, KVCache.create(config, 2, 16))[0])

    np.testing.assert_allclose(step(params), wanted, rtol=0, atol=1e-5)
    assert set(seen) == {(64, 64), (64, 32), (64, 176), (176, 64), (256, 64)}


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_few_rows_of_an_embedding_are_the_same_rows(count):
    rng = np.random.default_rng(count)
    table = Packed(*map(jnp.asarray, packed.to_int8(rng.standard_normal((50, 24)), 1, np)))
    tokens = jnp.asarray(rng.integers(0, 50, (count, 1)))
    got = packed.take(table, tokens, jnp.float32)
    np.testing.assert_array_equal(got, packed.unpack(table)[tokens])


def test_who_uses_it():
    assert attending.product(TPU, None, 8) is matmul.product
    assert attending.product(TPU, None, matmul.MOST_ROWS + 1) is None  # A prompt.
    assert attending.product(dataclasses.replace(TPU, kind="xla"), None, 8) is None
    for choice in ("xla", "auto", kernels.choose("pallas", jax.devices()[0])):
        assert attending.product(choice, None, 8) is None
    config = presets.get("tiny")
    alone, two = (
        sharding.layout(config, aot.mesh(SimpleNamespace(devices=jax.devices()[:n]), "tp"), "tp")
        for n in (1, 2)
    )
    assert attending.product(TPU, alone, 8) is matmul.product
    assert attending.product(TPU, two, 8) is None
