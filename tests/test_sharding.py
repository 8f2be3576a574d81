"""Parameters on a mesh of eight virtual devices: who keeps what, and where it was read from."""

import json
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from llama_nb import presets, sharding
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.checkpoint.names import entries
from llama_nb.checkpoint.save import convert
from llama_nb.config import to_hf
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of, with_params
from llama_nb.packed import Packed
from llama_nb.quantize import quantize
from llama_nb.session import Session

TINY = presets.get("tiny")


def _stored(values, entry):
    """Our array as the (outputs, inputs) matrix of a file."""
    if not entry.outputs:
        return values
    cut = values.ndim - entry.outputs
    order = (*range(cut, values.ndim), *range(cut))
    return np.ascontiguousarray(values.transpose(order).reshape(entry.stored_shape))


@pytest.fixture(scope="module")
def params():
    return params_of(Llama(TINY, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    from safetensors.numpy import save_file

    path, tensors = tmp_path_factory.mktemp("tiny"), {}
    for entry in entries(TINY):
        value = params
        for key in entry.path:
            value = value[key]
        tensors[entry.hf] = _stored(np.asarray(value), entry)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(to_hf(TINY)))
    return path


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
    assert sharding.spec((64, 8, 16), axes, "tp", mesh) == PartitionSpec(None, "model", None)
    assert sharding.spec((576, 9, 64), axes, "2d", mesh) == PartitionSpec("data", None, None)
    both = PartitionSpec(("data", "model"), None, None)
    assert sharding.spec((64, 8, 16), axes, "fsdp", mesh) == both
    with pytest.raises(InputError, match="'pipeline' is unknown; known: replicated, tp"):
        sharding.spec((64, 8, 16), axes, "pipeline", mesh)


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
    parts = {"replicated": 1, "tp": 4, "fsdp": 8, "2d": 8}[strategy]
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


def test_each_number_is_read_once(folder, mesh, monkeypatch):
    """With every weight split over all devices, slices add up to the model."""
    checkpoint = open_checkpoint(folder)
    read, sizes = checkpoint.read, []

    def spy(entry, index=None):
        values = read(entry, index)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(checkpoint, "read", spy)
    monkeypatch.setitem(sharding.STRATEGIES, "all", {"embed": ("data", "model")})
    load_params(checkpoint, shardings=sharding.param_shardings(TINY, mesh, "all"))
    assert sum(sizes) == TINY.param_count()


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["one", "mesh", "int8"])
def test_memory_while_loading(tmp_path, how):
    """Never more than what is kept, plus one tensor: 8% and a few dozen megabytes here."""
    code = f"""
    import dataclasses, threading, time
    import jax
    from llama_nb import devices
    devices.virtual_cpu_devices(8)
    import jax.numpy as jnp, ml_dtypes, numpy as np
    from safetensors.numpy import save_file
    from llama_nb import loading, presets, sharding
    from llama_nb.checkpoint import open_checkpoint
    from llama_nb.checkpoint.names import entries
    from llama_nb.config import to_hf
    import json, pathlib

    config = dataclasses.replace(
        presets.get("smollm2-360m"), num_layers=16, vocab_size=16384, tied=False
    )
    folder = pathlib.Path({str(tmp_path)!r})
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(ml_dtypes.bfloat16)
    tensors = {{e.hf: np.resize(noise, e.stored_shape) for e in entries(config)}}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_hf(config)))
    largest = max(t.size for t in tensors.values())
    del tensors

    def anonymous():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

    peak, done = 0, False

    def watch():
        global peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.001)

    jax.block_until_ready(jnp.ones(8) + 1)
    before = anonymous()
    thread = threading.Thread(target=watch)
    thread.start()
    mesh = sharding.make_mesh((2, 4)) if {how!r} == "mesh" else None
    quant = "int8" if {how!r} == "int8" else None
    params = loading.load_weights(
        open_checkpoint(folder), dtype=jnp.bfloat16, quant=quant, mesh=mesh
    )
    done = True
    thread.join()
    leaves = jax.tree.leaves(params)
    kept = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    print(kept, peak - before, largest)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kept, peak, largest = map(int, run.stdout.split())
    assert kept > (250e6 if how == "int8" else 500e6) * 0.6
    assert peak < 1.08 * kept + 4 * largest


@pytest.mark.slow
@pytest.mark.parametrize("quant", [None, "int8"])
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
    read, sizes = checkpoint.read, []

    def spy(entry, index=None):
        values = read(entry, index)
        sizes.append(values.size)
        return values

    checkpoint.read = spy
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
                textwrap.dedent(code),
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
