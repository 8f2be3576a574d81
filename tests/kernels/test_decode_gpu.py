"""The GPU kernel of decode attention: interpreted against float64, and lowered for CUDA."""

import contextlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from book import build
from llama_nb.errors import InputError
from llama_nb.kernels import decode_gpu
from llama_nb.kernels.decode import NOTHING

# What is kept, how queries come, and the error allowed: roundings of weights and products.
KINDS = {
    "float32": ("float32", 1e-5),
    "float16": ("float16", 4e-3),
    "bfloat16": ("bfloat16", 2e-2),
    "int8": ("bfloat16", 2e-2),
    "int8 exact": ("float32", 1e-5),
}


def make(shape, starts, lengths, kind, seed=0):
    """Return arguments whose unused slots hold NaN, and what must come out."""
    (B, K, G, S, H), (dtype, _) = shape, KINDS[kind]
    rng = np.random.default_rng(seed)
    slots = np.arange(S)
    used = (slots >= np.reshape(starts, (B, 1))) & (slots < np.reshape(lengths, (B, 1)))
    poison = np.where(used, 1, np.nan)[:, None].astype(np.float32)
    q = jnp.asarray(rng.normal(size=(B, K, G, H)) * H**-0.5, dtype)
    if kind.startswith("int8"):
        kept = [jnp.asarray(rng.integers(-127, 128, (B, K, S, H)), jnp.int8) for _ in range(2)]
        scales = [rng.uniform(0.5, 2, (B, K, S)).astype(np.float32) / 99 for _ in range(2)]
        wide = [np.asarray(x, float) * s[..., None] for x, s in zip(kept, scales, strict=True)]
        scales = [jnp.asarray(s * poison) for s in scales]
    else:
        kept, scales = [jnp.asarray(rng.normal(size=(B, K, S, H)), dtype) for _ in range(2)], []
        wide = [np.asarray(x, float) for x in kept]
        kept = [x * jnp.asarray(poison[..., None], dtype) for x in kept]
    out, lse = np.zeros((B, K, G, H)), np.full((B, K, G), NOTHING)
    for b in np.flatnonzero(used.any(axis=1)):
        keys, values = (x[b][:, used[b]] for x in wide)
        scores = np.einsum("kgh,ksh->kgs", np.asarray(q[b], float), keys)
        lse[b] = np.logaddexp.reduce(scores, axis=-1)
        out[b] = np.einsum("kgs,ksh->kgh", np.exp(scores - lse[b][..., None]), values)
    numbers = (jnp.asarray(starts, jnp.int32), jnp.asarray(lengths, jnp.int32))
    return (q, *kept, *numbers, *scales), out, lse


def check(shape, starts, lengths, kind, block, splits, seed=0):
    arguments, out, lse = make(shape, starts, lengths, kind, seed)
    found, found_lse = decode_gpu.decode_attention(
        *arguments, block=block, splits=splits, interpret=True
    )
    assert found.dtype == found_lse.dtype == jnp.float32
    tolerance = KINDS[kind][1]
    np.testing.assert_allclose(found, out, atol=tolerance * max(1, np.abs(out).max()))
    np.testing.assert_allclose(found_lse, lse, atol=tolerance, rtol=tolerance)


S = 80  # five blocks of 16, two and a half of 32
edges = st.sampled_from([0, 1, 15, 16, 17, 32, 64, S - 1, S])


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.tuples(edges, edges), min_size=3, max_size=3),
    st.sampled_from([*KINDS]),
    st.sampled_from([(1, 64), (3, 64), (4, 128), (17, 64)]),
    st.sampled_from([(16, 1), (16, 3), (16, 5), (32, 2), (32, 7)]),
    st.integers(0, 9),
)
def test_ragged(spans, kind, heads, blocks, seed):
    G, H = heads
    starts, lengths = zip(*spans, strict=True)
    check((3, 2, G, S, H), starts, lengths, kind, *blocks, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(kind):
    """Full, empty, one slot, and edges inside of a block; NaN everywhere else."""
    check((4, 1, 4, S, 64), [0, 7, 40, 21], [S, 7, 41, 60], kind, 16, 3)


def test_default_blocks_and_splits():
    check((2, 1, 2, 300, 64), [0, 100], [300, 290], "bfloat16", None, None)


def test_lengths_beyond_the_cache_read_nothing_there():
    arguments, _, _ = make((1, 1, 1, 16, 64), [0], [16], "float32")
    q, keys, values, *_ = arguments
    found, want = (
        decode_gpu.decode_attention(
            q, keys, values, jnp.array([start]), jnp.array([length]), splits=2, interpret=True
        )[0]
        for start, length in ((-5, 40), (0, 16))
    )
    np.testing.assert_array_equal(found, want)


def test_merge_of_parts_and_of_nothing():
    rng = np.random.default_rng(0)
    parts, scores = rng.normal(size=(2, 1, 3, 1, 4)), rng.normal(size=(2, 1, 3, 1))
    parts[:, :, 1], scores[:, :, 1] = 0, NOTHING
    parts[1], scores[1] = 0, NOTHING
    out, lse = decode_gpu.merge(jnp.asarray(parts, jnp.float32), jnp.asarray(scores, jnp.float32))
    weights = np.exp(scores[0, 0, :, 0]) / np.exp(scores[0, 0, :, 0]).sum()
    np.testing.assert_allclose(out[0, 0, 0], weights @ parts[0, 0, :, 0], atol=1e-6)
    np.testing.assert_allclose(lse[0, 0, 0], np.logaddexp.reduce(scores[0, 0, :, 0]), atol=1e-6)
    assert not out[1].any()
    np.testing.assert_allclose(lse[1], NOTHING)


@pytest.mark.parametrize("block", [8, 48, -16])
def test_block_is_refused(block):
    arguments, _, _ = make((1, 1, 1, 16, 64), [0], [16], "float32")
    with pytest.raises(InputError, match=f"power of two from 16 on, not {block}"):
        decode_gpu.decode_attention(*arguments, block=block, interpret=True)


def test_what_the_kernel_cannot_read_is_said(monkeypatch):
    if jax.default_backend() == "cpu":
        assert decode_gpu.available() == "there is no GPU"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    struct = jax.ShapeDtypeStruct
    assert "96 wide" in decode_gpu.available(struct((1, 1, 16, 96), jnp.bfloat16))
    assert "32 bits" in decode_gpu.available(struct((64, 8, 2**16, 128), jnp.int8))
    monkeypatch.setattr(decode_gpu, "MISSING", "gone")
    assert decode_gpu.available() == "gone"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("H", [64, 128])
def test_lowers_for_cuda(kind, H):
    """To Triton's IR, with no GPU: one kernel, whose grid fills an H100."""
    B, K, G, slots = 2, 8, 4, 2048
    dtype = jnp.dtype(KINDS[kind][0])
    kept = jax.ShapeDtypeStruct((B, K, slots, H), jnp.int8 if "int8" in kind else dtype)
    numbers = jax.ShapeDtypeStruct((B,), jnp.int32)
    scales = [jax.ShapeDtypeStruct((B, K, slots), jnp.float32)] * 2 if "int8" in kind else []
    q = jax.ShapeDtypeStruct((B, K, G, H), dtype)
    with described_gpu():
        traced = jax.jit(decode_gpu.decode_attention).trace(
            *(q, kept, kept, numbers, numbers, *scales)
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1
    splits = int(text.split("grid_z = ")[1].split(" ")[0])
    assert B * K * splits >= 132


def described_gpu():
    """Since jax 0.11 or so Triton's lowering asks for which GPU it is."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

    gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    return use_abstract_mesh(
        AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=gpu)
    )


@pytest.mark.slow
def test_benchmark_tries_every_path():
    """Interpreted on CPU; only cuDNN has no path there, and says so in its row."""
    script = build.ROOT / "benchmarks/decode_attention.py"
    run = subprocess.run(
        [sys.executable, script, "--interpret"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = {line[22:36].strip(): line[37:] for line in run.stdout.splitlines()[2:]}
    assert [*rows] == ["ours", "XLA", "cuDNN", "JAX's Pallas", "ours int8", "XLA int8"], run.stdout
    for name, row in rows.items():
        assert row.startswith("not run") == (name == "cuDNN"), run.stdout
        assert "wrong" not in row
