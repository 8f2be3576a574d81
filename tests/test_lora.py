"""A weight with a change of low rank multiplies as their sum does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_nb import layers
from llama_nb.lora import LowRank, change, merged
from llama_nb.packed import Packed, to_int8, unpack
from llama_nb.sharding import make_mesh

SHAPES = [((32, 4, 8), 1), ((4, 8, 32), 2), ((32, 48), 1)]  # q_proj, o_proj, gate_proj
RANK, SCALE = 3, 2.0


def weight(shape, contract, kind="plain"):
    rng = np.random.default_rng(0)
    base, a, b = (
        jnp.asarray(rng.standard_normal(size), jnp.float32) / 6
        for size in (shape, (*shape[:contract], RANK), (RANK, *shape[contract:]))
    )
    if kind == "int8":
        axes = tuple(range(contract))
        values, scale = to_int8(base, axes)
        base = Packed(values, scale.squeeze(axes))
    elif kind == "bits":
        base = Packed(jax.lax.bitcast_convert_type(base.astype(jnp.bfloat16), jnp.uint16))
    return LowRank(base, a, b, SCALE)


def inputs(shape, contract, rows=3):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((2, rows, *shape[:contract])), jnp.float32)


def exact(x, low, contract):
    """Return the product in float64, from the definition."""
    base = unpack(low.base) if isinstance(low.base, Packed) else low.base
    base, a, b, x = (np.asarray(part, np.float64) for part in (base, low.a, low.b, x))
    return np.tensordot(x, base + SCALE * np.tensordot(a, b, 1), contract)


@pytest.mark.parametrize("kind", ["plain", "int8", "bits"])
@pytest.mark.parametrize(("shape", "contract"), SHAPES)
def test_a_product_is_that_of_the_sum(shape, contract, kind):
    low, x = weight(shape, contract, kind), inputs(shape, contract)
    assert low.shape == shape
    expected = exact(x, low, contract)
    outside = layers.dense(x, low, contract)
    inside = jax.jit(layers.dense, static_argnums=2)(x, low, contract)
    for out in (outside, inside, layers.dense(x, merged(low), contract)):
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected, atol=1e-5)
    one = layers.dense(x[:1, :1], low, contract)  # A row alone takes another way.
    np.testing.assert_allclose(one, expected[:1, :1], atol=1e-5)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(("shape", "contract"), SHAPES)
def test_on_a_mesh(shape, contract, explicit):
    """`a` lies as the weight's inputs do, `b` as its outputs."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh, low, x = make_mesh((2, 4), explicit=explicit), weight(shape, contract), None
    outputs = len(shape) - contract
    ins = (None, "model") if contract == 2 else ("data",)
    outs = ("model",) + (None,) * (outputs - 1) if contract == 1 else ("data",)

    def put(part, *spec):
        return jax.device_put(part, jax.NamedSharding(mesh, jax.P(*spec)))

    laid = LowRank(put(low.base, *ins, *outs), put(low.a, *ins), put(low.b, None, *outs), SCALE)
    x = inputs(shape, contract)
    wide = layers.dense(x, low, contract)
    rows = put(x) if explicit else put(x, "data")
    if explicit:  # There, lengths to be contracted have to lie alike.
        rows = put(x, None, None, *ins)
    with jax.set_mesh(mesh):
        out = jax.jit(layers.dense, static_argnums=2)(rows, laid, contract)
    np.testing.assert_allclose(out, wide, atol=1e-5)


@pytest.mark.parametrize(("shape", "contract"), SHAPES)
def test_gradients_follow_the_chain_rule(shape, contract):
    """dA = scale dW b^T and dB = scale a^T dW, with dW the gradient of the whole weight."""
    low, x = weight(shape, contract), inputs(shape, contract)

    def loss(w):
        return jnp.sin(layers.dense(x, w, contract)).sum()

    whole = jax.grad(loss)(merged(low)).reshape(np.prod(shape[:contract]), -1)
    found = jax.grad(lambda a, b: loss(LowRank(low.base, a, b, SCALE)), (0, 1))(low.a, low.b)
    a, b = low.a.reshape(-1, RANK), low.b.reshape(RANK, -1)
    for ours, expected in zip(found, (whole @ b.T, a.T @ whole), strict=True):
        np.testing.assert_allclose(ours.ravel(), SCALE * expected.ravel(), atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "bits"])
def test_gradients_pass_through_a_base_in_few_bits(kind):
    low, x = weight((32, 4, 8), 1, kind), inputs((32, 4, 8), 1)
    wide = dataclasses.replace(low, base=unpack(low.base))

    def loss(x, a, b, base):
        return jnp.sin(layers.dense(x, LowRank(base, a, b, SCALE))).sum()

    for ours, expected in zip(
        *(jax.jit(jax.grad(loss, (0, 1, 2)))(x, w.a, w.b, w.base) for w in (low, wide)), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_sum_keeps_the_bases_dtype():
    low = weight((32, 48), 1)
    narrow = dataclasses.replace(low, base=low.base.astype(jnp.bfloat16))
    assert merged(narrow).dtype == jnp.bfloat16
    expected = (narrow.base.astype(jnp.float32) + change(low)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(merged(narrow), expected)
    assert merged(weight((32, 48), 1, "int8")).dtype == jnp.float32
