"""Flash attention against float64, interpreted; compiled by the TPU compiler; by cuDNN's rules."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec, SingleDeviceSharding

from llama_nb import topology
from llama_nb.errors import InputError
from llama_nb.kernels import flash, flash_gpu, flash_tpu
from tests.marks import compiles, slow

TOLERANCE = {"float32": 3e-6, "bfloat16": 0.03}  # of values around 1; bfloat16 keeps 8 bits


@dataclasses.dataclass
class Case:
    """Inputs with NaN wherever there is no text, and what must come out."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    starts: jax.Array
    lengths: jax.Array
    out: np.ndarray

    @property
    def arguments(self):
        return self.q, self.k, self.v, self.starts, self.lengths


def make(shape, starts, lengths, dtype="float32", seed=0):
    B, T, K, G, H = shape
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, n, H)), dtype) for n in (K * G, K, K))
    q64, k64, v64 = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t in np.ndindex(B, T):
        if starts[b] <= t < lengths[b]:
            seen = slice(starts[b], t + 1)
            for n in range(K * G):
                scores = k64[b, seen, n // G] @ q64[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ v64[b, seen, n // G] / weights.sum()
    columns = np.arange(T)
    text = (columns >= np.reshape(starts, (B, 1))) & (columns < np.reshape(lengths, (B, 1)))
    q, k, v = (jnp.where(text[:, :, None, None], x, jnp.nan) for x in (q, k, v))
    return Case(q, k, v, jnp.asarray(starts), jnp.asarray(lengths), out)


def agrees(found, case):
    assert found.dtype == case.q.dtype
    np.testing.assert_allclose(
        np.asarray(found, np.float64), case.out, atol=TOLERANCE[found.dtype.name], rtol=0
    )


@st.composite
def cases(draw):
    # A kernel is traced and compiled anew for every shape: few shapes, many lengths.
    B, T, K, G, H, block = draw(
        st.sampled_from(
            [
                (3, 1, 1, 1, 64, None),
                (2, 40, 3, 2, 64, None),
                (3, 32, 2, 2, 64, (8, 16)),
                (2, 27, 2, 3, 128, (16, 8)),
            ]
        )
    )
    edges = sorted({0, 1, T // 2, T - 1, T, *range(0, T, 8)})
    number = st.one_of(st.sampled_from(edges), st.integers(0, T))
    starts, lengths = (draw(st.lists(number, min_size=B, max_size=B)) for _ in range(2))
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    return make((B, T, K, G, H), starts, lengths, dtype, draw(st.integers(0, 99))), block


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_kernel_agrees_with_float64(drawn):
    """Also where lengths are ragged or nothing; NaN outside of the text changes nothing."""
    case, block = drawn
    agrees(_interpreted(case.arguments, block), case)


@jax.jit
def _jitted(*arguments):
    return flash.flash_attention(*arguments)


@functools.partial(jax.jit, static_argnames="block")
def _interpreted(arguments, block):
    options = {"implementation": "pallas", "interpret": True, "block": block}
    return flash.flash_attention(*arguments, **options)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_kernel(dtype):
    case = make((4, 21, 2, 2, 64), [0, 5, 21, 20], [21, 17, 3, 21], dtype)
    agrees(flash.flash_attention(*case.arguments, implementation="xla"), case)
    agrees(_jitted(*case.arguments), case)  # On CPU.


def test_tpu_interpreter_finds_no_read_of_what_nobody_wrote():
    """Memory starts as NaN, reads out of bounds raise; all of the output is written."""
    case = make((2, 24, 2, 2, 64), [3, 24], [20, 24])
    options = pltpu.InterpretParams(
        out_of_bounds_reads="raise", uninitialized_memory="nan", detect_races=False
    )
    found = flash.flash_attention(*case.arguments, interpret=options, block=(8, 8))
    agrees(found, case)


def test_only_text_below_the_diagonal_is_read():
    """Blocks as the index maps give them: once a row, none without text, none in the future."""
    T, queries, keys = 64, 16, 8
    rows, columns = flash_tpu.visits(T, queries, keys)
    assert len(rows) == 2 + 4 + 6 + 8
    for start, length in [(0, 64), (20, 64), (5, 30), (63, 64)]:
        asked = [
            int(flash_tpu.key_block(i, j, start, length, queries, keys))
            for i, j in zip(rows, columns, strict=True)
        ]
        fetched = [n for n, before in zip(asked, [None, *asked], strict=False) if n != before]
        wanted = []
        for row in range(T // queries):
            end = min((row + 1) * queries, length)
            if row * queries < length and end > start:
                wanted += range(start // keys, -(-end // keys))
        assert [n for n, b in zip(wanted, [None, *wanted], strict=False) if n != b] == fetched


def test_block_sizes():
    assert flash_tpu.block_sizes(4096, 4, 128, 2) == (512, 512)
    assert flash_tpu.block_sizes(4096, 8, 128, 4) == (256, 512)
    assert flash_tpu.block_sizes(4096, 16, 128, 2) == (256, 512)
    assert flash_tpu.block_sizes(4096, 9, 64, 4) == (512, 512)
    assert flash_tpu.block_sizes(4096, 9, 64, 4, "TPU v4") == (256, 512)
    assert flash_tpu.block_sizes(4096, 4, 128, 2, "TPU v6 lite") == (512, 1024)
    assert flash_tpu.block_sizes(100, 4, 128, 2) == (112, 112)
    assert flash_tpu.block_sizes(4096, 512, 128, 4)[0] == 16  # A tile of bfloat16 at least.
    assert [flash_tpu.heads_per_block(*x) for x in [(8, 128), (8, 64), (3, 64), (1, 64)]] == [
        *(1, 2, 3, 1)
    ]


def test_inside_shard_map():
    case = make((2, 24, 2, 2, 64), [0, 9], [24, 20])
    mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    heads, rows = PartitionSpec(None, None, "model"), PartitionSpec()
    for check in (True, False):
        sharded = jax.shard_map(
            lambda *x: flash_tpu.flash_attention(*x, interpret=True),
            mesh=mesh,
            in_specs=(heads, heads, heads, rows, rows),
            out_specs=heads,
            check_vma=check,
        )
        agrees(jax.jit(sharded)(*case.arguments), case)


def lowered(attend, name, B, T, K, G, H, dtype):
    """Lower a prompt's attention for the first device of a slice."""
    here = SingleDeviceSharding(topology.get(name).devices[0])
    dims = [(B, T, K * G, H), (B, T, K, H), (B, T, K, H)]
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=here) for shape in dims]
    numbers = [jax.ShapeDtypeStruct((B,), "int32", sharding=here)] * 2
    return jax.jit(attend).lower(*given, *numbers)


@compiles
@pytest.mark.parametrize("name", ["v5e:1x1", *slow("v6e:1x1", "v5p:2x2x1", "tpu7x:2x2x1")])
def test_compiles_for_a_tpu(name):
    try:
        topology.get(name)
    except InputError as error:
        pytest.skip(f"this libtpu is older than {name}: {error}")
    shapes = [(1, 2048, 8, 2, 128, "bfloat16"), (1, 700, 3, 2, 64, "bfloat16")]
    if name == "v5e:1x1":
        shapes += [(1, 1, 8, 4, 64, "float32"), (1, 131_072, 1, 8, 128, "bfloat16")]
    for B, T, K, G, H, dtype in shapes:
        # The platform chooses the kernel.
        compiled = lowered(flash.flash_attention, name, B, T, K, G, H, dtype).compile()
        assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
        # Not even a quarter of the scores: copies of queries, keys and values are far smaller.
        scores = B * K * G * T * T * 4
        assert compiled.memory_analysis().temp_size_in_bytes < max(scores / 4, 2**21)


# KV heads, heads of a group and features: SmolLM2's, Qwen's and the 70B's, and what takes most.
GROUPS = {
    "bfloat16": [(5, 3, 64), (4, 7, 128), (8, 8, 128)],
    "float32": [(3, 3, 64), (2, 8, 64)],
}


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("dtype", GROUPS)
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1"])
def test_blocks_fit_the_chip(name, dtype):
    """The compiler refuses a kernel that needs more VMEM than it gets."""
    chip = topology.get(name).devices[0].device_kind
    attend = functools.partial(flash_tpu.flash_attention, chip=chip)
    for K, G, H in GROUPS[dtype]:
        lowered(attend, name, 1, 2048, K, G, H, dtype).compile()


def test_cudnn_is_asked_for_text_at_the_front():
    """Text moves to the front and back; XLA answers in cuDNN's place."""
    case = make((3, 16, 2, 2, 64), [0, 5, 16], [16, 14, 16], "bfloat16")
    attend = jax.nn.dot_product_attention

    def by_xla(*arguments, **options):
        assert options["is_causal"] and options["implementation"] == "cudnn"
        assert not any(bool(jnp.isnan(x).any()) for x in arguments)
        return attend(*arguments, **{**options, "implementation": "xla"})

    with mock.patch.object(jax.nn, "dot_product_attention", by_xla):
        agrees(flash_gpu.flash_attention(*case.arguments), case)
    assert (
        flash_gpu.available("bfloat16", 64) == "there is no GPU" or jax.default_backend() == "gpu"
    )


BAD = {
    "q has shape": lambda c: dict(q=c.q[0]),
    "does not fit k": lambda c: dict(q=c.q[:, :, :3]),
    "B, T and H must be equal": lambda c: dict(q=c.q[:, :5]),
    "none of them 0": lambda c: dict(q=c.q[:, :0], k=c.k[:, :0], v=c.v[:, :0]),
    "v has shape": lambda c: dict(v=c.v[..., :32]),
    "must be the same of": lambda c: dict(k=c.k.astype(jnp.bfloat16)),
    "all must be": lambda c: dict(
        q=c.q.astype(jnp.float16), k=c.k.astype(jnp.float16), v=c.v.astype(jnp.float16)
    ),
    "starts is float32": lambda c: dict(starts=c.starts.astype(jnp.float32)),
    "lengths is int32[1]; wanted integers of shape (2,)": lambda c: dict(lengths=c.lengths[:1]),
    "lengths go from 0 to 99; prompts of": lambda c: dict(lengths=jnp.array([0, 99])),
    "starts go from -1 to 2; prompts of": lambda c: dict(starts=jnp.array([-1, 2])),
    "block is (12, 8)": lambda c: dict(block=(12, 8)),
    "'triton' is unknown": lambda c: dict(implementation="triton"),
}


@pytest.mark.parametrize("message", BAD)
def test_refused_by_name(message):
    case = make((2, 8, 2, 2, 64), [0, 3], [8, 8])
    case.lengths = case.lengths.astype(jnp.int32)
    given = {name: getattr(case, name) for name in ("q", "k", "v", "starts", "lengths")}
    with pytest.raises(InputError) as caught:
        flash.flash_attention(**{**given, **BAD[message](case)})
    assert message in str(caught.value)
