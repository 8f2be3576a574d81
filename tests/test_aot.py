"""Small programs compiled by the real TPU compiler, where it is installed."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from llama_nb import aot, hlo, kernels, presets, roofline, sharding, topology
from llama_nb.__main__ import main
from llama_nb.aot.cost import measure
from llama_nb.aot.programs import PROGRAMS, Step
from llama_nb.errors import InputError
from tests.marks import compiles, slow

SMALL = dataclasses.replace(presets.get("llama3.1-8b"), num_layers=2)
SMALLER = dataclasses.replace(  # where shapes don't matter: it compiles in a third of the time
    presets.get("llama3.2-1b"),
    **{"num_layers": 2, "vocab_size": 8192, "embed_dim": 512, "ffn_dim": 2048, "num_heads": 8},
)


@compiles
@pytest.mark.parametrize("name", ["v5e:4x4", *slow("v6e:2x4", "v5p:2x2x1", "tpu7x:2x2x1")])
def test_decode_for_a_slice(name):
    try:
        where = topology.get(name)
    except InputError as error:
        pytest.skip(f"this libtpu is older than {name}: {error}")
    report, text = aot.compile_for(name, SMALL, quant="int8")
    assert report.chips == where.chips and report.fits
    # Every matrix is split over all chips, so is the cache; norms are whole, and so are scales of
    # rows: small.
    devices = len(where.devices)
    weights = SMALL.param_count() / devices
    assert weights < report.weight_bytes < 1.03 * weights
    cache = 8 * 2048 * SMALL.cache_bytes_per_token(1) / devices
    assert cache < report.cache_bytes < 1.05 * cache
    given = report.weight_bytes + report.cache_bytes
    assert given <= report.argument_bytes < 1.02 * given + 10**6
    # Two sums a layer, one for the embedding, two to find the likeliest; no weight is gathered.
    assert report.collectives["all-reduce"] == 2 * SMALL.num_layers + 3
    assert report.collective_bytes.get("all-gather", 0) < 10**6
    slower = max(report.roofline_ms, report.estimated_step_ms)
    assert 0.7 * report.roofline_ms < report.estimated_step_ms
    assert report.tokens_per_s == pytest.approx(8e3 / slower, rel=1e-3)
    step = roofline.decode(8, 2048, weights=1, cache=1)
    floor = roofline.floor(SMALL, step, where.device, devices)
    assert report.roofline_ms == pytest.approx(floor.seconds * 1e3, abs=1e-4)
    assert hlo.schedule(text).collectives == report.collectives


def _one_chip(phase, context):
    """Return what one v5e with its 16 GB can do at best with 8B in int8, in seconds."""
    config = presets.get("llama3.1-8b")
    matrices = config.param_count() - config.vocab_size * config.embed_dim  # but the embedding
    K, H, L = config.num_kv_heads, config.head_dim, config.num_layers
    if phase == "decode":
        past = 2 * L * K * context * (H + 4)  # keys and values, and a scale for each
        return (matrices + past) / 819e9
    head = config.vocab_size * config.embed_dim  # of the last position only
    scores = context * (context + 1) / 2 * L * config.num_heads * H * 2
    return 2 * ((matrices - head) * context + head + scores) / 197e12


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["tp", "dp"], ids=["by hand", "session"])
def test_8b_decodes_on_one_chip(strategy):
    """All 32 layers, a full cache of 8,192: 80% of what reading each byte once would allow."""
    config = presets.get("llama3.1-8b")
    asked = {"batch": 1, "context": 8192, "quant": "int8", "strategy": strategy}
    report, text = aot.compile_for("v5e:1x1", config, **asked)
    assert report.fits and report.argument_bytes + report.temp_bytes < 9e9
    assert 0.8 * report.estimated_step_ms < 1e3 * _one_chip("decode", 8192)
    # The feed-forward matrices, the head and the cache are read by kernels; no table is copied.
    count = sum(op.is_kernel for op, _, _ in hlo.executed(text))
    assert count == 1 + config.num_layers * (1 + (2 if strategy == "tp" else 3))
    copied = [op for op, _, _ in hlo.executed(text) if op.opcode == "copy"]
    assert max(hlo.shape_bytes(op.result) for op in copied) < 2**26  # The embedding has 2**29.


@compiles
@pytest.mark.slow
def test_8b_reads_a_prompt_on_one_chip():
    config = presets.get("llama3.1-8b")
    asked = {"phase": "prefill", "batch": 1, "context": 8192, "quant": "int8"}
    report, _ = aot.compile_for("v5e:1x1", config, **asked)
    assert report.fits and report.argument_bytes + report.temp_bytes < 14e9
    assert 0.8 * report.estimated_step_ms < 1e3 * _one_chip("prefill", 8192)


@compiles
@pytest.mark.slow
def test_deeper_models_cost_the_same_per_layer():
    """What is said of a prefill's 4 layers from 1 and 2 is what compiling all 4 says."""
    config = dataclasses.replace(presets.get("llama3.2-1b"), num_layers=4, vocab_size=16_384)
    extended, _ = aot.compile_for("v5e:2x2", config, phase="prefill", batch=1, context=512)
    assert extended.layers_compiled == [1, 2]
    where = topology.get("v5e:2x2")
    layout = sharding.layout(config, aot.mesh(where, "tp"), "tp")
    choice = kernels.choose("auto", where.devices[0])
    step = Step(config, layout, 1, 512, None, choice)
    cost, _ = measure(PROGRAMS["prefill"](step), where)
    assert extended.argument_bytes == pytest.approx(cost.arguments, rel=1e-3)
    plan = cost.schedule
    assert extended.collectives == plan.collectives
    moving = max(plan.kernel_bytes / 819e6, plan.kernel_flops / 197e9)
    assert moving > 0
    assert extended.estimated_step_ms == pytest.approx(plan.cycles / 1.5e6 + moving, rel=0.03)


@compiles
@pytest.mark.slow
def test_training_gathers_weights_and_scatters_gradients():
    config = SMALLER
    report, _ = aot.compile_for("v5e:2x2", config, phase="train", batch=4, context=256)
    assert report.fits and report.strategy == "fsdp" and report.bound in ("memory", "compute")
    assert report.weight_bytes == pytest.approx(4 * config.param_count() / 4, rel=1e-3)
    assert report.state_bytes == pytest.approx(2 * report.weight_bytes, rel=1e-3)
    assert report.collectives["all-gather"] > 2 * config.num_layers


KEPT = """
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from llama_nb import topology

def first(x):
    return 3 * x

def described(x):
    return x @ x

def last(x):
    return 4 * x

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(first)(jnp.ones(7)).block_until_ready()
for _ in range(2):
    here = SingleDeviceSharding(topology.get("v5e:1x1").devices[0])
    given = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=here)
    jax.clear_caches()
    jax.jit(described).lower(given).compile()
jax.jit(last)(jnp.ones(7)).block_until_ready()
"""


@compiles
def test_no_program_for_a_description_is_kept(tmp_path):
    """JAX can't read one back: with its persistent cache on, the second compilation would warn."""
    done = subprocess.run(
        [sys.executable, "-W", "error:Error reading persistent", "-c", KEPT],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    kept = {file.name.partition("-")[0] for file in tmp_path.iterdir()}
    assert {"jit_first", "jit_last"} <= kept and "jit_described" not in kept


@pytest.mark.slow
@compiles
def test_what_does_not_fit_says_so():
    config = presets.get("llama3.1-8b")
    report, text = aot.compile_for("v5e:1x1", config, batch=4, context=8192)
    assert not report.fits and text == ""
    assert report.argument_bytes > report.hbm_bytes == int(15.75 * 2**30)
    assert report.estimated_step_ms is None and report.temp_bytes is None
    assert "DOES NOT FIT" in aot.describe("llama3.1-8b", report)


@compiles
def test_command_line(capsys, tmp_path):
    command = ["compile", "--model", "llama3.2-1b", "--topology", "v5e:1x1", "--batch", "1"]
    file = tmp_path / "step.hlo"
    assert main([*command, "--quant", "int8", "--json", "--hlo", str(file)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert {
        "argument_bytes",
        "temp_bytes",
        "fits",
        "hbm_bytes",
        "collectives",
        "estimated_step_ms",
        "roofline_ms",
        "tokens_per_s",
        "compile_s",
    } <= set(row)
    assert row["fits"] is True and row["collectives"] == {}
    assert hlo.schedule(file.read_text()).cycles > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--topology v9z:4x4", r"no TPU topology 'v9z:4x4'; known: .*v5e:\{1x1,2x2"),
        ("--topology v5e", "no TPU topology 'v5e'; known"),
        ("--topology v5e:4x4 --phase dream", "phase 'dream' is unknown; known: decode, prefill"),
        ("--topology v5e:4x4 --batch 0", "a batch of 0 and a context of 2048"),
        ("--topology v5e:4x4 --context 999999", "at most this model's 131072"),
        ("--topology v5e:4x4 --hlo /nowhere/at/all", "no such folder"),
    ],
)
def test_what_is_refused(capsys, options, message):
    assert main(["compile", "--model", "llama3.1-8b", *options.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


@compiles
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--topology v5e:3x3", "refuses 'v5e:3x3'.*known"),
        ("--topology v5e:4x4 --strategy magic", "strategy 'magic' is unknown"),
        ("--topology v5e:4x4 --strategy dp", "8 sequences of the batch can't be split into 16"),
        ("--topology v5e:8x8", "32 query heads can't be split into 64 equal parts"),
        ("--topology v5e:2x4 --phase train --quant int8", "leave --quant out"),
    ],
)
def test_what_does_not_divide_is_refused(capsys, options, message):
    assert main(["compile", "--model", "llama3.1-8b", *options.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_the_compiler(capsys, monkeypatch):
    topology.get.cache_clear()
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["compile", "--model", "llama3.1-8b", "--topology", "v5e:4x4"]) == 2
    assert "pip install 'llama_nb[pod]'" in capsys.readouterr().err


def test_kinds_agree_with_their_makers():
    """A chip's clock times what its matrix units do in a cycle is its peak."""
    units = {"v4": (8, 128), "v5e": (4, 128), "v5p": (8, 128), "v6e": (4, 256), "tpu7x": (8, 256)}
    for name, (count, side) in units.items():
        kind = topology.KINDS[name]
        chip = roofline.CHIPS[kind.chip]
        assert 2 * count * side**2 * kind.clock == pytest.approx(chip.flops, rel=0.01)
        assert kind.usable * kind.devices <= 1.01 * chip.capacity


def test_shapes_allocate_nothing():
    config = presets.get("llama3.1-405b")
    layout = sharding.layout(config, sharding.make_mesh((1, 8)), "tp")
    shapes = aot.param_shapes(config, layout, "int8", jnp.bfloat16)
    gate = shapes["layers"][0]["mlp"]["gate_proj"]
    assert gate.values.sharding.shard_shape(gate.values.shape) == (16_384, 53_248 // 8)
    assert gate.scale.sharding.shard_shape(gate.scale.shape) == (53_248 // 8,)
