"""The benchmark of 8B on one accelerator: its arithmetic, its weights, and a tiny run on CPU."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from book import build
from llama_nb import packed, presets

LLAMA = presets.get("llama3.1-8b")
# A layer of 8B: q and o, k and v, three matrices of the feed-forward.
LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
NORMS, HEAD = 65 * 4096, 128_256 * 4096


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(build.ROOT / "benchmarks")
    return importlib.import_module("eight_b")


@pytest.fixture
def weights(monkeypatch):
    monkeypatch.syspath_prepend(build.ROOT / "benchmarks")
    return importlib.import_module("eight_b_weights")


def test_bytes_of_a_decode_step(script):
    row = {"phase": "decode", "quant": "bfloat16", "batch": 1, "context": 2048, "steps": 64}
    work = script.work_of(LLAMA, row)
    # In the middle of 64 steps 2,016 positions are read, one is written; a row of the embedding.
    assert work.weights == 2 * (32 * LAYER + NORMS + HEAD + 4096) == 15_009_857_536
    assert work.cache == 2017 * 131_072
    work = script.work_of(LLAMA, {**row, "quant": "int8", "batch": 8})
    assert work.weights == 32 * LAYER + NORMS + HEAD + 8 * 4096
    assert work.cache == 8 * 2017 * 65_536 * (1 + 4 / 128)


def test_flops_of_a_prompt(script):
    row = {"phase": "prefill", "quant": "bfloat16", "batch": 1, "context": 2048, "steps": 1}
    scores = 32 * 32 * 2048 * 2049 // 2
    expected = 2 * 2048 * 32 * LAYER + 2 * HEAD + scores * 4 * 128
    assert script.work_of(LLAMA, row).flops == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(29.69e12, rel=1e-3)


def test_shares(script):
    device = {"copy_gb_s": 4000.0, "product_tflop_s": 700.0}
    row = {"phase": "decode", "quant": "bfloat16", "batch": 8, "context": 2048, "steps": 64}
    work = script.work_of(LLAMA, row)
    seconds = (work.weights + work.cache) / 4e12
    found = script.shares(LLAMA, {**row, "seconds": 2 * seconds}, device)
    assert found["of_copy"] == pytest.approx(0.5)
    assert found["tokens_per_s"] == pytest.approx(8 / (2 * seconds))
    row = {"phase": "prefill", "quant": "bfloat16", "batch": 1, "context": 2048, "steps": 1}
    seconds = script.work_of(LLAMA, row).flops / 700e12
    found = script.shares(LLAMA, {**row, "seconds": 4 * seconds}, device)
    assert found["of_product"] == pytest.approx(0.25)
    assert found["tokens_per_s"] == pytest.approx(2048 / (4 * seconds))


def test_room(script):
    """64 sequences of 8,192 tokens: 68.7 GB of keys and values in bfloat16."""
    cache = 64 * 8192 * 131_072
    assert script.needed(LLAMA, "bfloat16", 64, 8192) == pytest.approx(
        1.1 * (cache + 8 * 64 * 128_256)
    )


def test_weights_have_the_exact_shapes(weights):
    assert weights.bytes_of(weights.shapes_of(LLAMA, "bfloat16")) == 16_060_522_496
    matrices = 32 * LAYER + 2 * HEAD
    scales = 32 * (32 * 128 + 2 * 8 * 128 + 4096 + 2 * 14336 + 4096) + 2 * 128_256
    int8 = weights.bytes_of(weights.shapes_of(LLAMA, "int8"))
    assert int8 == matrices + 4 * scales + 2 * NORMS


@pytest.mark.slow
def test_weights_are_random_and_the_same_each_time(weights):
    tiny = presets.get("tiny")
    for quant in ("bfloat16", "int8"):
        first, again = (weights.filled(weights.shapes_of(tiny, quant)) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, first, again)
        gate = first["layers"][0]["mlp"]["gate_proj"]
        wide = packed.unpack(gate) if quant == "int8" else gate
        assert float(wide.astype("float32").std()) == pytest.approx(weights.STD, rel=0.1)
        up = jax.tree.leaves(first["layers"][0]["mlp"]["up_proj"])[0]
        assert not np.array_equal(jax.tree.leaves(gate)[0], up)
        assert (np.asarray(first["norm"], np.float32) == 1).all()


def test_a_peer_with_other_weights_is_refused(script, tmp_path):
    ours = np.array([1.0, -10.0, 3.0])
    script.compare(ours, SimpleNamespace(party="ours", folder=tmp_path), "bfloat16")
    peer = SimpleNamespace(party="transformers", folder=tmp_path)
    script.compare(ours + 0.4, peer, "bfloat16")
    with pytest.raises(RuntimeError, match=r"differ from ours by 6\.0%"):
        script.compare(ours + 0.6, peer, "bfloat16")


def test_without_an_accelerator_it_says_what_it_needs():
    run = _run("--device", "cpu")
    assert run.returncode == 0 and "needs an accelerator" in run.stdout


def _run(*options):
    command = [sys.executable, build.ROOT / "benchmarks/eight_b.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_tiny_model_on_a_cpu():
    """All cells of all parties, the peer's weights compared, a cell that does not fit left out."""
    pytest.importorskip("transformers", reason="the peer is transformers")
    run = _run(
        *("--device", "cpu", "--preset", "tiny", "--prompts", "32", "--contexts", "64"),
        *("--batches", "2,1000000000", "--tokens", "8", "--rounds", "1", "--no-compile"),
        *("--peers", "transformers,jax-ml"),
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [row.split(maxsplit=5) for row in run.stdout.splitlines()[2:-2]]
    cells = [(phase, quant) for phase in ("prefill", "decode") for quant in ("bfloat16", "int8")]
    for party, phase, quant in [
        *(("ours", *cell) for cell in cells),
        ("transformers", "prefill", "bfloat16"),
        ("transformers", "decode", "bfloat16"),
    ]:
        batch = "2" if phase == "decode" else "1"
        (rest,) = [row[5] for row in rows if row[:4] == [party, phase, quant, batch]]
        speed, of_copy, of_product = (float(n.replace(",", "")) for n in rest.split())
        assert speed > 0 and of_copy >= 0 and of_product >= 0, run.stdout
    assert run.stdout.count("  skipped: ") == 3 and "are free" in run.stdout
    assert "jax-ml             all bfloat16" in run.stdout and "pass --jax-ml DIR" in run.stdout
