"""The ragged decode kernel against float64, interpreted; and compiled by the TPU compiler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb import aot, hlo, kernels, presets, topology
from llama_nb.errors import InputError
from llama_nb.kernels import decode, decode_tpu, sharded
from tests.marks import compiles


@dataclasses.dataclass
class Case:
    """Inputs whose unused slots hold NaN, and what must come out."""

    q: jax.Array
    keys: jax.Array
    values: jax.Array
    starts: np.ndarray
    lengths: np.ndarray
    scales: dict
    out: np.ndarray
    lse: np.ndarray

    @property
    def arguments(self):
        return self.q, self.keys, self.values, jnp.asarray(self.starts), jnp.asarray(self.lengths)


def make(shape, starts, lengths, dtype="float32", seed=0):
    B, K, G, S, H = shape
    rng = np.random.default_rng(seed)
    q_dtype = "bfloat16" if dtype == "int8" else dtype
    q = jnp.asarray(rng.normal(size=(B, K * G, H)), q_dtype)
    slots = np.arange(S)
    unused = (slots < np.reshape(starts, (B, 1))) | (slots >= np.reshape(lengths, (B, 1)))
    if dtype == "int8":
        kept = [jnp.asarray(rng.integers(-127, 128, (B, K, S, H)), jnp.int8) for _ in range(2)]
        raw = [rng.uniform(0.5, 2, (B, K, S)).astype(np.float32) / 127 for _ in range(2)]
        wide = [np.asarray(x, np.float64) * s[..., None] for x, s in zip(kept, raw, strict=True)]
        raw = [np.where(unused[:, None], np.nan, s) for s in raw]
        scales = dict(zip(("key_scales", "value_scales"), map(jnp.asarray, raw), strict=True))
    else:
        kept, scales = [jnp.asarray(rng.normal(size=(B, K, S, H)), dtype) for _ in range(2)], {}
        wide = [np.asarray(x, np.float64) for x in kept]
        kept = [jnp.where(unused[:, None, :, None], jnp.nan, x).astype(dtype) for x in kept]
    out, lse = np.zeros((B, K, G, H)), np.full((B, K, G), decode.NOTHING)
    for b in range(B):
        seen = slice(int(starts[b]), max(int(starts[b]), int(lengths[b])))
        if seen.stop == seen.start:
            continue
        grouped = np.asarray(q[b], np.float64).reshape(K, G, H)
        scores = np.einsum("kgh,ksh->kgs", grouped, wide[0][b, :, seen]) * H**-0.5
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        out[b] = np.einsum("kgs,ksh->kgh", weights / total, wide[1][b, :, seen])
        lse[b] = (top + np.log(total))[..., 0]
    flat = out.reshape(B, K * G, H), lse.reshape(B, K * G)
    starts, lengths = (np.asarray(x, np.int32) for x in (starts, lengths))
    return Case(q, *kept, starts, lengths, scales, *flat)


def agree(case, attend=kernels.decode_attention, **options):
    out, lse = attend(*case.arguments, **case.scales, **options, return_lse=True)
    rounded = 1e-5 if case.q.dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(out, case.out, rtol=rounded, atol=rounded)
    np.testing.assert_allclose(lse, case.lse, rtol=rounded, atol=rounded)


@st.composite
def cases(draw):
    # A kernel is traced and compiled anew for every shape: few shapes, many lengths.
    (B, K, G, S, H), block, dtype = draw(
        st.sampled_from(
            [
                ((1, 1, 1, 1, 64), 1, "float32"),
                ((4, 2, 3, 300, 64), 128, "float32"),
                ((3, 1, 4, 512, 128), 256, "float32"),
                ((3, 2, 1, 100, 128), 100, "bfloat16"),
                ((2, 1, 4, 300, 64), 128, "bfloat16"),
                ((4, 2, 2, 128, 64), 128, "int8"),
                ((2, 2, 4, 512, 128), 256, "int8"),
            ]
        )
    )
    edges = sorted({0, 1, block - 1, block, block + 1, S - 1, S} & set(range(S + 1)))
    ends = st.one_of(st.sampled_from(edges), st.integers(0, S))
    pairs = [sorted((draw(ends), draw(ends))) for _ in range(B)]
    if draw(st.booleans()):
        pairs = [(0, end) for _, end in pairs]
    starts, lengths = zip(*pairs, strict=True)
    return make((B, K, G, S, H), starts, lengths, dtype, draw(st.integers(0, 99))), block


@functools.partial(jax.jit, static_argnames=("block", "interpret", "implementation", "return_lse"))
def compiled(*arguments, **options):
    return kernels.decode_attention(*arguments, **options)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_kernel(drawn):
    case, block = drawn
    agree(case, compiled, block=block, interpret=True)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_without_a_kernel(drawn):
    agree(drawn[0], compiled, implementation="xla")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("H", [64, 128])
def test_nothing_uninitialized_is_used(dtype, H):
    """The interpreter fills outputs and scratch with NaN, looks for races, and checks bounds."""
    case = make((4, 2, 3, 384, H), [0, 5, 200, 384], [384, 5, 290, 384], dtype)
    interpret = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    agree(case, block=128, interpret=interpret)


def test_longer_than_one_block_by_one_score():
    """A late score far above all earlier ones must shrink what was added before to nothing."""
    case = make((1, 1, 1, 256, 128), [0], [256])
    q, keys, values, *rest = case.arguments
    keys = keys.at[0, 0, 255].set(100 * q[0, 0])
    out = kernels.decode_attention(q, keys, values, *rest, block=128, interpret=True)
    np.testing.assert_allclose(out[0, 0], values[0, 0, 255], atol=1e-6)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 512), st.integers(0, 512)), min_size=1, max_size=6))
def test_only_filled_blocks_are_fetched(pairs):
    """A pipeline fetches a block when the next step, in order, names another one: count those."""
    starts, lengths = (np.asarray(x, np.int32) for x in zip(*pairs, strict=True))
    block = 128
    scalars = [np.asarray(x) for x in decode_tpu.plan(jnp.array(starts), jnp.array(lengths), block)]
    at = functools.partial(decode_tpu.block_at, block=block)
    steps = 512 // block
    walk = [tuple(map(int, at(b, i, *scalars))) for b in range(len(starts)) for i in range(steps)]
    fetched = [here for here, before in zip(walk, [None, *walk], strict=False) if here != before]
    wanted = [
        (b, i)
        for b in range(len(starts))
        if lengths[b] > starts[b]
        for i in range(starts[b] // block, (lengths[b] - 1) // block + 1)
    ]
    assert fetched == (wanted or fetched[:1])


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (PartitionSpec("data", "model"), "sequences and heads"),
        (PartitionSpec(None, "model", "data"), "heads and slots"),
        (PartitionSpec(), "nothing"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_on_a_mesh(spec, what, dtype):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    case = make((2, 2, 3, 256, 64), [0, 130], [200, 256], dtype)
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    for implementation in ("xla", "pallas"):
        out = jax.jit(functools.partial(sharded.decode, mesh, spec, implementation=implementation))(
            *case.arguments, *case.scales.values()
        )
        rounded = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(np.asarray(out, np.float32), case.out, atol=rounded)


@compiles
@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:1x1", "v5p:2x2x1", "tpu7x:2x2x1"])
@pytest.mark.parametrize(
    ("dtype", "K", "G", "H"),
    [("bfloat16", 8, 4, 128), ("int8", 8, 4, 64), ("bfloat16", 3, 3, 64), ("int8", 1, 8, 128)],
)
def test_the_tpu_compiler_takes_it(name, dtype, K, G, H):
    try:
        where = topology.get(name)
    except InputError as error:
        pytest.skip(f"this libtpu is older than {name}: {error}")
    B, S = 8, 2048
    mesh = Mesh(np.array(where.devices[:1]), ("chip",), axis_types=(AxisType.Auto,))

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    numbers = [shape(B, dtype="int32")] * 2
    scales = [shape(B, K, S, dtype="float32")] * 2 * (dtype == "int8")
    choice = kernels.choose("auto", where.devices[0])
    assert choice.kind == "pallas"

    def attend(q, keys, values, starts, lengths, *scales):
        named = dict(zip(("key_scales", "value_scales"), scales, strict=False))
        return kernels.decode_attention(
            q, keys, values, starts, lengths, **named, implementation=choice
        )

    q, kept = shape(B, K * G, H, dtype="bfloat16"), shape(B, K, S, H)
    with where.target():
        compiled = jax.jit(attend).lower(q, kept, kept, *numbers, *scales).compile()
    assert hlo.schedule(compiled.as_text()).kernels == 1
    # The cache is read as it lies: nothing near its size is copied.
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
    assert kept.size * kept.dtype.itemsize > 2**20


@compiles
@pytest.mark.slow
def test_it_scores_no_worse_in_the_step_of_70b():
    config = dataclasses.replace(presets.get("llama3.1-70b"), num_layers=4)
    step = {
        attention: aot.compile_for("v5e:4x4", config, quant="int8", attention=attention)[0]
        for attention in ("xla", "pallas", "auto")
    }
    assert [step[name].attention for name in step] == ["xla", "pallas", "pallas"]
    assert step["pallas"].estimated_step_ms <= step["xla"].estimated_step_ms
    assert step["pallas"].argument_bytes == step["xla"].argument_bytes


@pytest.mark.slow
@compiles
@pytest.mark.parametrize(
    ("phase", "strategy", "quant"),
    [("decode", "2d", None), ("prefill", "tp", "int8")],
)
def test_other_steps_have_one_kernel_a_layer(phase, strategy, quant):
    config = dataclasses.replace(presets.get("llama3.1-8b"), num_layers=2)
    asked = {"phase": phase, "strategy": strategy, "quant": quant, "batch": 4, "context": 512}
    report, text = aot.compile_for("v5e:2x2", config, **asked)
    plain, _ = aot.compile_for("v5e:2x2", config, **asked, attention="xla")
    assert hlo.schedule(text).kernels == 2
    assert report.collectives == plain.collectives
    assert report.temp_bytes < 1.1 * plain.temp_bytes
    if phase == "prefill":
        assert report.estimated_step_ms < plain.estimated_step_ms
    # What a kernel computes is charged too: the estimate stays above the floor.
    assert report.estimated_step_ms > 0.7 * report.roofline_ms


@compiles
def test_training_has_no_kernel():
    config = dataclasses.replace(presets.get("llama3.2-1b"), num_layers=1)
    with pytest.raises(InputError, match="training has no kernel"):
        aot.compile_for("v5e:1x1", config, phase="train", attention="pallas")


def test_blocks_fit_the_chip():
    sizes = [decode.block_slots(8, 8192, 128, 2, chip) for chip in ("TPU v5 lite", "TPU7x", None)]
    assert sizes == [256, 1024, 256]
    assert decode.block_slots(8, 100, 128, 2) == 100
    assert decode.block_slots(64, 8192, 128, 4) == 128


def _change(**changes):
    case = make((2, 2, 2, 128, 64), [0, 0], [5, 6], changes.pop("dtype", "float32"))
    names = ("q", "keys", "values", "starts", "lengths")
    return {**dict(zip(names, case.arguments, strict=True)), **case.scales, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": jnp.zeros((2, 4, 1, 64))}, r"q has shape \(2, 4, 1, 64\)"),
        ({"q": jnp.zeros((3, 4, 64))}, "does not fit keys"),
        ({"q": jnp.zeros((2, 5, 64))}, "N a multiple of K"),
        ({"q": jnp.zeros((2, 4, 64), jnp.int32)}, "q is int32"),
        ({"values": jnp.zeros((2, 2, 127, 64))}, "same shape and dtype"),
        ({"values": jnp.zeros((2, 2, 128, 64), jnp.bfloat16)}, "same shape and dtype"),
        ({"starts": jnp.zeros((2,))}, "starts is float32"),
        ({"lengths": jnp.zeros((3,), jnp.int32)}, r"lengths is int32\[3\]"),
        ({"lengths": np.array([5, 129])}, "lengths go from 5 to 129; a cache of 128 slots"),
        ({"starts": np.array([-1, 0])}, "starts go from -1"),
        ({"key_scales": jnp.ones((2, 2, 128))}, "key_scales is given, and keys are float32"),
        ({"dtype": "int8", "value_scales": None}, "value_scales is missing"),
        ({"dtype": "int8", "key_scales": jnp.ones((2, 128))}, "key_scales is float32"),
        ({"block": 96}, "block is 96"),
        ({"block": 256}, "block is 256"),
        ({"implementation": "cuda"}, "'cuda' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        kernels.decode_attention(**_change(**changes))


def test_choices():
    cpu = jax.devices("cpu")[0]
    assert kernels.choose("auto", cpu).kind == "xla"
    assert kernels.choose("pallas", cpu).kind == "pallas"
    with pytest.raises(InputError, match="'flash' is unknown; known: auto, xla, pallas"):
        kernels.choose("flash", cpu)
