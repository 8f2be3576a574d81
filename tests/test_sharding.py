"""Parameters on a mesh of eight virtual devices: who keeps what, and where it was read from."""

import dataclasses
import inspect
import json
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from book import build
from llama_nb import presets, sharding
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.checkpoint.names import entries
from llama_nb.checkpoint.save import convert
from llama_nb.errors import InputError
from llama_nb.model import with_params
from llama_nb.packed import Packed
from llama_nb.quantize import quantize
from llama_nb.session import Session
from tests.spies import counted

TINY = presets.get("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("tiny"), TINY).path


@pytest.fixture(scope="module")
def params(folder):
    return load_params(open_checkpoint(folder))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh((2, 4))


@pytest.mark.parametrize("text", ["", "2", "2x", "x4", "2x4x1", "0x8", "2X4", "-1x4", "two"])
def test_a_mesh_that_is_none(text):
    with pytest.raises(InputError, match="2x4"):
        sharding.mesh_shape(text)


def test_a_mesh_larger_than_the_machine():
    assert sharding.mesh_shape("16x16") == (16, 16)
    with pytest.raises(InputError, match="needs 256 devices and JAX sees 8"):
        sharding.make_mesh((16, 16))


def test_a_dimension_is_split_only_if_it_divides(mesh):
    axes = ("embed", "heads", "head_dim")
    spec = {name: sharding.Layout(mesh, name).spec for name in sharding.STRATEGIES}
    assert spec["tp"]((64, 8, 16), axes) == PartitionSpec(None, "model", None)
    assert spec["2d"]((576, 9, 64), axes) == PartitionSpec("data", None, None)
    assert spec["fsdp"]((64, 8, 16), axes) == PartitionSpec(("data", "model"), None, None)
    assert spec["fsdp"]((6, 8, 16), axes) == PartitionSpec("data", None, None)


def test_every_parameter_has_a_sharding(mesh):
    for config in (TINY, presets.get("smollm2-135m")):
        for strategy in sharding.STRATEGIES:
            found = sharding.param_shardings(config, mesh, strategy)
            assert set(found) == {entry.path for entry in entries(config)}


@pytest.mark.parametrize("strategy", sharding.STRATEGIES)
def test_sharded_parameters_are_the_parameters(folder, params, mesh, strategy):
    shardings = sharding.param_shardings(TINY, mesh, strategy)
    loaded = load_params(open_checkpoint(folder), shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    gate = loaded["layers"][0]["mlp"]["gate_proj"]
    parts = {"replicated": 1, "dp": 1, "tp": 4}.get(strategy, 8)
    assert {shard.data.size for shard in gate.addressable_shards} == {gate.size // parts}


@pytest.mark.parametrize("strategy", ["replicated", "tp", "2d"])
def test_sharded_int8_is_int8(folder, params, mesh, strategy):
    shardings = sharding.param_shardings(TINY, mesh, strategy)
    loaded = load_params(open_checkpoint(folder), quant="int8", shardings=shardings)
    whole = load_params(open_checkpoint(folder), quant="int8")
    jax.tree.map(np.testing.assert_array_equal, loaded, whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1), whole, quantize(params)
    )
    down = loaded["layers"][0]["mlp"]["down_proj"]
    if strategy != "replicated":
        assert tuple(down.scale.sharding.spec) == tuple(down.values.sharding.spec)[1:]


def test_bits_are_bfloat16(folder, params):
    loaded = load_params(open_checkpoint(folder), bits=True)
    head = loaded["lm_head"]
    assert isinstance(head, Packed) and loaded["norm"].dtype == jnp.float32
    expected = np.asarray(params["lm_head"].astype(jnp.bfloat16)).view(np.uint16)
    np.testing.assert_array_equal(head.values, expected)


def test_a_folder_that_is_int8_loads_as_it_is(folder, params, mesh, tmp_path):
    convert(folder, tmp_path / "int8", dtype="float32", quant="int8")
    shardings = sharding.param_shardings(TINY, mesh, "2d")
    for places in (None, shardings):
        loaded = load_params(open_checkpoint(tmp_path / "int8"), shardings=places)
        gate, small = loaded["layers"][1]["mlp"]["gate_proj"], quantize(params)
        expected = small["layers"][1]["mlp"]["gate_proj"]
        np.testing.assert_allclose(gate.values, expected.values, atol=1)
        np.testing.assert_allclose(gate.scale, expected.scale, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["tp", "2d"])
@pytest.mark.parametrize("quant", [None, "int8"])
def test_generation_on_a_mesh_is_generation(folder, mesh, strategy, quant):
    prompts = [[1, 2, 3], [7] * 20, [200, 100, 50, 25, 12]]
    found = []
    for places in (None, sharding.param_shardings(TINY, mesh, strategy)):
        params = load_params(open_checkpoint(folder), quant=quant, shardings=places)
        session = Session(with_params(TINY, params), 64)
        logits = session.feed(prompts)
        found.append((np.asarray(logits), np.stack(list(session.tokens(logits, 8)))))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_part_that_several_devices_keep_is_read_once(folder, mesh):
    checkpoint = open_checkpoint(folder)
    sizes = counted(checkpoint)
    load_params(checkpoint, shardings=sharding.param_shardings(TINY, mesh, "tp"))
    assert sum(sizes) == TINY.param_count()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", ["one device", "mesh 2x4", "int8"])
def test_memory_while_loading(tmp_path, monkeypatch, case):
    """Never more than what is kept, plus one tensor: 8% and a few dozen megabytes here."""
    monkeypatch.syspath_prepend(build.ROOT / "benchmarks")
    import load_8b

    config = dataclasses.replace(
        presets.get("smollm2-360m"), num_layers=16, vocab_size=16384, tied=False
    )
    load_8b.write_checkpoint(tmp_path, config)
    command = [sys.executable, load_8b.__file__, "--tokens", "0", "--case", case, "--folder"]
    run = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    row = json.loads(run.stdout)
    assert row["kept_gb"] > 0.6 * (0.25 if case == "int8" else 0.5)
    largest = 4 * config.vocab_size * config.embed_dim / 1e9
    assert row["peak_anonymous_gb"] - row["anonymous_before_gb"] < 1.08 * row["kept_gb"] + largest


@pytest.mark.parametrize("quant", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_each_host_reads_its_own_slices(folder, quant):
    """Two processes with four devices each: together they read the model once."""
    code = """
    import sys
    import jax
    from llama_nb import devices, presets, sharding
    from llama_nb.checkpoint import load_params, open_checkpoint

    port, rank, folder, quant = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] or None
    devices.virtual_cpu_devices(4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
    assert jax.device_count() == 8 and jax.local_device_count() == 4
    checkpoint = open_checkpoint(folder)
    sizes = counted(checkpoint)
    mesh = sharding.make_mesh((2, 4))
    places = sharding.param_shardings(checkpoint.config, mesh, "fsdp")
    params = load_params(checkpoint, quant=quant, shardings=places)
    total = jax.jit(lambda p: sum(abs(leaf.astype("f4")).sum() for leaf in jax.tree.leaves(p)))
    print(sum(sizes), float(total(params)))
    jax.distributed.shutdown()
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                inspect.getsource(counted) + textwrap.dedent(code),
                *map(str, (port, rank, folder)),
                quant or "",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [run.communicate(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], ends
    (read, total), (other_read, other_total) = (
        map(float, out.splitlines()[-1].split()) for out, _ in ends
    )
    assert total == other_total > 0
    if quant is None:
        assert read == other_read == TINY.param_count() / 2
    else:  # A scale needs whole vectors of inputs, once per host.
        assert max(read, other_read) < 1.5 * TINY.param_count()
