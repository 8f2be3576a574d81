"""`convert` on small files: what it writes, what it refuses, and how it goes on after a stop."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from llama_nb import presets
from llama_nb.__main__ import main
from llama_nb.checkpoint import open_checkpoint, save
from llama_nb.checkpoint.names import entries
from llama_nb.checkpoint.save import convert
from llama_nb.config_files import from_hf, to_hf
from llama_nb.errors import CorruptFileError, InputError, MissingFileError
from llama_nb.quantize import quantize_rows

TINY = presets.get("tiny")
TIED = dataclasses.replace(presets.get("llama3.2-1b"), vocab_size=64, embed_dim=32, ffn_dim=48)
TIED = dataclasses.replace(TIED, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)


@pytest.fixture
def source(tmp_path, write_model):
    return write_model(tmp_path / "source", TINY)


def _read(folder):
    """Every tensor of a folder, read by the safetensors library."""
    from safetensors.torch import load_file

    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_config_survives_hugging_faces_spelling(name):
    config = presets.get(name)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_arrives(tmp_path, write_model, config, dtype):
    pytest.importorskip("torch", reason="NumPy alone cannot read bfloat16")
    tensors = write_model(tmp_path / "a", config).tensors
    limit = config.param_count() // 2
    folder = convert(tmp_path / "a", tmp_path / "new/b", dtype=dtype, max_shard_bytes=limit)
    written = _read(folder)
    assert written.keys() == tensors.keys()
    for name, values in tensors.items():
        assert str(written[name].dtype) == f"torch.{dtype}"
        expected = values if dtype == "float32" else values.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(written[name].float().numpy(), expected.astype(np.float32))
    content = json.loads((folder / "model.safetensors.index.json").read_text())
    itemsize = 4 if dtype == "float32" else 2
    assert content["metadata"]["total_size"] == itemsize * config.param_count()
    assert set(content["weight_map"]) == set(tensors)
    shards = sorted(set(content["weight_map"].values()))
    assert len(shards) > 2
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors.index.json",
        *shards,
    }
    largest = itemsize * max(values.size for values in tensors.values())
    assert all((folder / name).stat().st_size < max(limit, largest) + 3000 for name in shards)
    described = json.loads((folder / "config.json").read_text())
    assert described["torch_dtype"] == dtype and described["eos_token_id"] == [1, 2]
    assert open_checkpoint(folder).config == config


@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_int8(tmp_path, write_model, config):
    pytest.importorskip("torch", reason="NumPy alone cannot read bfloat16")
    tensors = write_model(tmp_path / "a", config).tensors
    folder = convert(tmp_path / "a", tmp_path / "b", quant="int8", dtype="float32")
    written = _read(folder)
    quantized = [name for name in tensors if "_proj" in name or name == "lm_head.weight"]
    assert len(quantized) == 7 * config.num_layers + (not config.tied)
    assert written.keys() == {*tensors, *(f"{name}_scale" for name in quantized)}
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    for entry in entries(config):
        if entry.hf not in quantized:
            assert checkpoint.scales(entry) is None
            np.testing.assert_array_equal(written[entry.hf].numpy(), tensors[entry.hf])
            continue
        values, scales = quantize_rows(tensors[entry.hf])
        assert written[entry.hf].numpy().dtype == np.int8
        np.testing.assert_array_equal(written[entry.hf].numpy(), values)
        np.testing.assert_array_equal(written[entry.hf + "_scale"].numpy(), scales[:, None])
        np.testing.assert_array_equal(checkpoint.scales(entry), scales)
        assert checkpoint.read(entry).dtype == np.int8
        error = np.abs(values * scales[:, None] - tensors[entry.hf])
        assert (error <= scales[:, None] / 2 * 1.0001).all()
    # And back: the numbers that int8 stands for.
    back = _read(convert(folder, tmp_path / "c", dtype="float32"))
    for name in quantized:
        expected = written[name].numpy() * written[name + "_scale"].numpy()
        np.testing.assert_array_equal(back[name].numpy(), expected)


@pytest.mark.parametrize("quant", [None, "int8"])
def test_small_pieces_make_the_same_files(source, tmp_path, monkeypatch, quant):
    whole = _bytes(convert(source.path, tmp_path / "whole", quant=quant))
    monkeypatch.setattr(save, "_BLOCK", 700)
    assert _bytes(convert(source.path, tmp_path / "pieces", quant=quant)) == whole


def test_the_tokenizer_comes_along(source, tmp_path, capsys):
    convert(source.path, tmp_path / "without")
    assert "no tokenizer" in capsys.readouterr().err
    names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    for name in [*names, "README.md"]:
        (source.path / name).write_text(f'{{"name": "{name}"}}')
    folder = convert(source.path, tmp_path / "with", progress=False)
    assert capsys.readouterr().err == ""
    for name in names:
        assert (folder / name).read_bytes() == (source.path / name).read_bytes()
    assert not (folder / "README.md").exists()


def test_a_tokenizer_that_cannot_be_read_is_left_out(tmp_path):
    from llama_nb.checkpoint.tokens import tokenizer_files

    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}
    extras = tokenizer_files(tmp_path, SimpleNamespace(config=TINY, metadata=metadata))
    assert extras.files == {} and "tokenizer lacks tokenizer.ggml.merges" in extras.note


def test_merges_of_ranks():
    from llama_nb.checkpoint.tokens import merges

    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4, b"bca": 5, b"ca": 6, b"bcab": 7}
    # No two of its parts make "bcab" but "bca" and "b"; "ca" is never made inside "bca".
    assert merges(ranks) == [
        (b"b", b"c"),
        (b"a", b"bc"),
        (b"bc", b"a"),
        (b"c", b"a"),
        (b"bca", b"b"),
    ]
    assert merges({"a": 0, "xyz": 1}) == []


def test_the_command(source, tmp_path, capsys):
    target = tmp_path / "b"
    assert main(["convert", str(source.path), str(target), "--dtype", "float32"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n" and "converting source to float32" in err
    assert main(["convert", str(source.path), str(target)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "already holds config.json" in err and err.count("\n") == 1


# What is refused


def test_options_that_are_none(source, tmp_path):
    with pytest.raises(InputError, match="float16"):
        convert(source.path, tmp_path / "b", dtype="float16")
    with pytest.raises(InputError, match="int4"):
        convert(source.path, tmp_path / "b", quant="int4")
    assert not (tmp_path / "b").exists()


def test_the_source_as_target(source):
    before = _bytes(source.path)
    with pytest.raises(InputError, match="both source and target"):
        convert(source.path, source.path.parent / "." / "source")
    assert _bytes(source.path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "model-00001-of-00001.partial"])
def test_a_target_with_other_files(source, tmp_path, name):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_text("mine")
    with pytest.raises(InputError, match=f"already holds {name}"):
        convert(source.path, tmp_path / "b")
    assert _bytes(tmp_path / "b") == {name: b"mine"}


def test_a_target_that_is_a_file(source, tmp_path):
    (tmp_path / "b").write_text("mine")
    for target in (tmp_path / "b", tmp_path / "b" / "c"):
        with pytest.raises(InputError, match=str(target)):
            convert(source.path, target)
    assert (tmp_path / "b").read_text() == "mine"


def test_a_damaged_source_leaves_no_target(source, tmp_path):
    file = source.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match="cut short"):
        convert(source.path, tmp_path / "b")
    with pytest.raises(MissingFileError):
        convert(tmp_path / "absent", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_without_a_scale(source, tmp_path, number):
    from safetensors.numpy import save_file

    source.tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = number
    save_file(source.tensors, source.path / "model.safetensors")
    with pytest.raises(CorruptFileError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        convert(source.path, tmp_path / "b", quant="int8")
    assert not list((tmp_path / "b").glob("*.partial"))
    assert not (tmp_path / "b" / "config.json").exists()


def test_a_disk_that_is_too_small(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_345))
    with pytest.raises(InputError, match=r"17,\d\d\d,\d\d\d bytes are needed and 12,345 are free"):
        convert(source.path, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def _run(script, *arguments, **options):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_a_disk_that_fills_up(source, tmp_path):
    # No disk of our own here, but a limit on the size of files meets the same code.
    script = (
        "import resource, signal, sys\n"
        "from llama_nb.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["convert", source.path, tmp_path / "b", "--dtype", "float32"]
    done = _run(script, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the disk is full (File too large); free some space" in done.stderr.splitlines()[-1]
    assert {path.name for path in (tmp_path / "b").iterdir()} == {".convert.json"}
    assert main(list(map(str, arguments))) == 0
    assert open_checkpoint(tmp_path / "b").config == TINY


# Stopped and started again

KILLED = """
import os, signal, sys
from llama_nb.checkpoint import save

pieces, put, count = save._pieces, save._put, int(sys.argv[3])

def step():
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(*arguments):
    for piece in pieces(*arguments):
        step()
        yield piece

def counted_put(*arguments):
    step()
    put(*arguments)

save._pieces, save._put = counted, counted_put
save.convert(sys.argv[1], sys.argv[2], max_shard_bytes=40_000)
"""
# One step each: the job file, 21 tensors, the index, config.json.
STEPS = {"at once": 0, "first tensor": 1, "in the middle": 12, "index": 22, "config": 23}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_killed_and_run_again(source, tmp_path, steps):
    whole = _bytes(convert(source.path, tmp_path / "whole", max_shard_bytes=40_000))
    target = tmp_path / "b"
    done = _run(KILLED, source.path, target, steps)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(MissingFileError, match="holds no checkpoint"):
        open_checkpoint(target)
    finished = {path: path.stat() for path in target.glob("*.safetensors")}
    assert bool(finished) == (steps > 2)
    assert bool(list(target.glob("*.partial"))) == (0 < steps < 22)
    convert(source.path, target, max_shard_bytes=40_000)
    assert _bytes(target) == whole
    for path, before in finished.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.fixture
def unfinished(source, tmp_path, monkeypatch):
    """A conversion that the keyboard interrupted."""
    pieces, count = save._pieces, 12

    def interrupted(*arguments):
        nonlocal count
        count -= 1
        if not count:
            raise KeyboardInterrupt
        yield from pieces(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(save, "_pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source.path, tmp_path / "b", max_shard_bytes=40_000)
    return tmp_path / "b"


def test_interrupted_leaves_no_partial_file(unfinished):
    names = {path.name for path in unfinished.iterdir()}
    assert ".convert.json" in names and len(names) > 2
    assert all(name == ".convert.json" or name.endswith(".safetensors") for name in names)


def test_a_damaged_shard_is_written_again(source, unfinished, tmp_path):
    whole = _bytes(convert(source.path, tmp_path / "whole", max_shard_bytes=40_000))
    first, second = sorted(unfinished.glob("*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(second.read_bytes().replace(b"model.", b"modem.", 1))
    convert(source.path, unfinished, max_shard_bytes=40_000)
    assert _bytes(unfinished) == whole


def test_another_conversion_does_not_go_on_with_it(source, unfinished):
    before = _bytes(unfinished)
    with pytest.raises(InputError, match="other options"):
        convert(source.path, unfinished, max_shard_bytes=40_000, dtype="float32")
    source.tensors["model.norm.weight"] += 1
    from safetensors.numpy import save_file

    save_file(source.tensors, source.path / "model.safetensors")
    with pytest.raises(InputError, match="another source"):
        convert(source.path, unfinished, max_shard_bytes=40_000)
    assert _bytes(unfinished) == before


def test_a_full_disk_is_seen_before_going_on(source, unfinished, monkeypatch):
    before = _bytes(unfinished)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(InputError, match="0 are free"):
        convert(source.path, unfinished, max_shard_bytes=40_000)
    assert _bytes(unfinished) == before
