"""Readers on small files of the real formats, whole and damaged."""

import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from llama_nb import presets
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.checkpoint.names import entries, interleave, split_halves
from llama_nb.config_files import to_hf
from llama_nb.errors import CorruptFileError, InputError, MissingFileError

TINY = presets.get("tiny")


def _ours(matrix, entry):
    """The (outputs, inputs) matrix of a file as our array."""
    cut = len(entry.shape) - entry.outputs
    values = matrix.reshape(*entry.shape[cut:], *entry.shape[:cut])
    return values.transpose(*range(entry.outputs, values.ndim), *range(entry.outputs))


@pytest.fixture
def hf_folder(tmp_path, write_model):
    return write_model(tmp_path, TINY).path


@pytest.fixture(scope="module")
def tensors(tmp_path_factory, write_model):
    """What is in `hf_folder`."""
    return write_model(tmp_path_factory.mktemp("tiny"), TINY).tensors


@pytest.fixture(scope="module")
def params(tensors):
    return unflatten_dict({e.path: _ours(tensors[e.hf], e) for e in entries(TINY)})


@pytest.fixture
def gguf_file(tmp_path, tensors):
    import gguf

    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(TINY.num_layers)
    writer.add_context_length(TINY.context)
    writer.add_embedding_length(TINY.embed_dim)
    writer.add_feed_forward_length(TINY.ffn_dim)
    writer.add_head_count(TINY.num_heads)
    writer.add_head_count_kv(TINY.num_kv_heads)
    writer.add_layer_norm_rms_eps(TINY.norm_eps)
    writer.add_rope_freq_base(TINY.rope_theta)
    writer.add_vocab_size(TINY.vocab_size)
    for entry in entries(TINY):
        matrix = tensors[entry.hf]
        if entry.rotary:
            heads = entry.shape[1]
            matrix = interleave(matrix.reshape(heads, -1, matrix.shape[1])).reshape(matrix.shape)
        writer.add_tensor(entry.gguf, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("source", ["hf_folder", "gguf_file"])
def test_every_parameter_arrives(request, params, source):
    checkpoint = open_checkpoint(request.getfixturevalue(source))
    assert checkpoint.config == TINY
    jax.tree.map(np.testing.assert_array_equal, load_params(checkpoint), params)


@pytest.mark.parametrize("source", ["hf_folder", "gguf_file"])
def test_a_slice_is_that_part_of_the_whole(request, source):
    checkpoint = open_checkpoint(request.getfixturevalue(source))
    rng = np.random.default_rng(0)
    for entry in entries(TINY):
        whole = checkpoint.read(entry)
        assert whole.shape == entry.shape
        for _ in range(4):
            index = []
            for size in entry.shape:
                low, high = sorted(rng.integers(0, size + 1, 2))
                index.append(slice(int(low), int(high)) if low < high else slice(None))
            np.testing.assert_array_equal(checkpoint.read(entry, tuple(index)), whole[tuple(index)])


def test_bfloat16_keeps_its_bits(hf_folder, tensors, params):
    torch = pytest.importorskip("torch", reason="the file is written by torch")
    from safetensors.torch import save_file

    narrow = {name: torch.tensor(values).to(torch.bfloat16) for name, values in tensors.items()}
    save_file(narrow, hf_folder / "model.safetensors")
    loaded = load_params(open_checkpoint(hf_folder), jnp.bfloat16)
    expected = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_rotary_layouts_are_inverse_and_differ():
    rows = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    np.testing.assert_array_equal(split_halves(interleave(rows)), rows)
    assert split_halves(rows)[0, :, 0].tolist() == rows[0, [0, 2, 4, 6, 1, 3, 5, 7], 0].tolist()


def test_nothing_there(tmp_path):
    for path in (tmp_path / "absent", tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(MissingFileError, match=str(tmp_path)):
            open_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 3, 50, 400, -100])
def test_a_gguf_file_cut_short(gguf_file, keep):
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"tiny\.gguf"):
        open_checkpoint(gguf_file)


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -100])
def test_safetensors_cut_short(hf_folder, keep):
    file = hf_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        open_checkpoint(hf_folder)


def test_safetensors_with_a_wrong_header(hf_folder):
    file = hf_folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2) + b"[]" + bytes(64))
    with pytest.raises(CorruptFileError, match="header"):
        open_checkpoint(hf_folder)


def _rewrite(folder, change):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks the tensor model\.norm\.weight"),
        (lambda t: t.update(extra=np.zeros(3)), "extra"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(63, np.float32)}),
            r"model\.norm\.weight has shape \(63,\)",
        ),
        (lambda t: t.update({"model.norm.weight": np.zeros(64, np.uint32)}), "U32"),
    ],
)
def test_tensors_that_do_not_fit(hf_folder, change, says):
    _rewrite(hf_folder, change)
    with pytest.raises((CorruptFileError, InputError), match=says):
        load_params(open_checkpoint(hf_folder))


def test_config_that_contradicts_the_tensors(hf_folder):
    other = dataclasses.replace(TINY, num_layers=3)
    (hf_folder / "config.json").write_text(json.dumps(to_hf(other)))
    with pytest.raises(CorruptFileError, match=r"lacks the tensor model\.layers\.2"):
        load_params(open_checkpoint(hf_folder))


def test_an_index_names_its_files(hf_folder):
    index = hf_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(MissingFileError, match=r"gone\.safetensors"):
        open_checkpoint(hf_folder)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}}))
    with pytest.raises(CorruptFileError, match="outside"):
        open_checkpoint(hf_folder)


def test_progress_ends_at_the_total(hf_folder):
    seen = []
    load_params(open_checkpoint(hf_folder), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == TINY.param_count()
    assert seen == sorted(seen)


# int8


def _quantize(folder, quantization=None):
    """Turn the fixture's folder into int8 as `convert` writes it."""
    from llama_nb.checkpoint import compressed
    from llama_nb.quantize import quantize_rows

    def change(tensors):
        for name in [name for name in tensors if "_proj" in name]:
            tensors[name], scales = quantize_rows(tensors[name])
            tensors[name + "_scale"] = scales[:, None]

    _rewrite(folder, change)
    described = {"quantization_config": quantization or compressed.describe(tied=False)}
    (folder / "config.json").write_text(json.dumps({**to_hf(TINY), **described}))


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def test_int8_rows_have_scales(hf_folder, tensors):
    _quantize(hf_folder)
    checkpoint = open_checkpoint(hf_folder)
    checkpoint.check()
    for entry in entries(TINY):
        values, scales = checkpoint.read(entry), checkpoint.scales(entry)
        expected = _ours(tensors[entry.hf], entry)
        if "_proj" not in entry.hf:
            assert scales is None
            np.testing.assert_array_equal(values, expected)
            continue
        assert (values.dtype, scales.dtype, scales.shape) == (
            np.int8,
            np.float32,
            entry.stored_shape[:1],
        )
        wide = values * scales.reshape(entry.shape[len(entry.shape) - entry.outputs :])
        assert np.abs(wide - expected).max() <= scales.max() / 2 * 1.0001


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (None, "lacks the tensor .*q_proj.weight_scale"),
        (np.ones((63, 1), np.float32), r"shape \(63, 1\), but its weight has 64 rows"),
        (np.ones((1, 64), np.float32), r"shape \(1, 64\)"),
        (np.ones((64, 1), np.int8), "is I8; scales are floats"),
        *(
            (np.where(np.arange(64) == 7, number, 1).astype(np.float32)[:, None], r"\(row 7\)")
            for number in (np.nan, np.inf, -1.0, 0.0)
        ),
    ],
)
def test_scales_that_are_none(hf_folder, scale, says):
    _quantize(hf_folder)

    def change(tensors):
        del tensors[Q_PROJ + "_scale"]
        if scale is not None:
            tensors[Q_PROJ + "_scale"] = scale

    _rewrite(hf_folder, change)
    with pytest.raises(CorruptFileError, match=says) as caught:
        open_checkpoint(hf_folder).check()
    assert "model.safetensors" in str(caught.value) and Q_PROJ in str(caught.value)


def test_scales_of_no_int8_tensor(hf_folder):
    _rewrite(hf_folder, lambda tensors: tensors.update({Q_PROJ + "_scale": np.ones((64, 1))}))
    with pytest.raises(CorruptFileError, match=r"q_proj\.weight is F32, but .*_scale says"):
        open_checkpoint(hf_folder).check()
    _rewrite(hf_folder, lambda tensors: tensors.pop(Q_PROJ + "_scale"))
    _rewrite(hf_folder, lambda tensors: tensors.update(weight_scale=np.ones((64, 1))))
    with pytest.raises(CorruptFileError, match="holds a tensor that no Llama"):
        open_checkpoint(hf_folder).check()


def test_half_precision_scales_of_one_axis(hf_folder):
    _quantize(hf_folder)
    half = np.ones(64, np.float16)
    _rewrite(hf_folder, lambda tensors: tensors.update({Q_PROJ + "_scale": half}))
    checkpoint = open_checkpoint(hf_folder)
    checkpoint.check()
    (entry,) = [entry for entry in entries(TINY) if entry.hf == Q_PROJ]
    np.testing.assert_array_equal(checkpoint.scales(entry), half.astype(np.float32))


def _changed(**changes):
    from llama_nb.checkpoint import compressed

    described = compressed.describe(tied=False)
    weights = described["config_groups"]["group_0"]["weights"]
    weights.update({key: value for key, value in changes.items() if key in weights})
    described.update({key: value for key, value in changes.items() if key not in weights})
    return described


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"load_in_4bit": True}, "unknown kind"),
        (["int8"], "unknown kind"),
        (_changed(format="pack-quantized"), "compressed-tensors"),
        (_changed(num_bits=4), "one scale per channel"),
        (_changed(strategy="tensor"), "one scale per channel"),
        (_changed(symmetric=False), "one scale per channel"),
        (_changed(config_groups={}), "one scale per channel"),
        (_changed(config_groups={"a": {"targets": ["Linear"]}}), "one scale per channel"),
    ],
)
def test_weights_quantized_in_other_ways(hf_folder, quantization, says):
    described = {**to_hf(TINY), "quantization_config": quantization}
    (hf_folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=says) as caught:
        open_checkpoint(hf_folder)
    assert "config.json" in str(caught.value)


# Headers and dtypes


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-256, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, "256"]},
        {"data_offsets": [0, 255]},
        {"shape": [64.0]},
        {"shape": [-64]},
        {"shape": [2**40, 2**40]},
        {"shape": None},
        {"dtype": None},
        {"dtype": "F64"},
    ],
)
def test_a_header_that_contradicts_itself(hf_folder, change):
    item = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256], **change}
    header = json.dumps({"model.norm.weight": item}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(256)
    (hf_folder / "model.safetensors").write_bytes(content)
    with pytest.raises((CorruptFileError, InputError), match=r"model\.safetensors"):
        open_checkpoint(hf_folder)


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(hf_folder, content):
    (hf_folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"index\.json"):
        open_checkpoint(hf_folder)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_a_gguf_file_of_whole_numbers(gguf_file, tmp_path, dtype):
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    path = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind)
    for tensor in reader.tensors:
        wrong = tensor.name == "blk.1.attn_q.weight"
        writer.add_tensor(tensor.name, tensor.data.astype(dtype) if wrong else tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"blk\.1\.attn_q\.weight is I\d+, which"):
        open_checkpoint(path).check()


# Meta's files


@pytest.fixture
def meta_folder(tmp_path, tensors):
    """A model in two pieces, as a table of tensors per piece."""
    torch = pytest.importorskip("torch", reason="the files are written by torch")
    pieces = [{}, {}]
    for entry in entries(TINY):
        matrix = torch.tensor(tensors[entry.hf])
        axis = 1 if entry.path[-1] in ("o_proj", "down_proj") else 0
        parts = [matrix] * 2 if matrix.ndim == 1 else torch.chunk(matrix, 2, axis)
        for piece, part in zip(pieces, parts, strict=True):
            piece[entry.meta] = part.clone()
    content = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 256}
    (tmp_path / "params.json").write_text(json.dumps({**content, "multiple_of": 16}))

    def save(change=lambda pieces: None):
        change(pieces)
        for number, piece in enumerate(pieces):
            torch.save(piece, tmp_path / f"consolidated.{number:02d}.pth")
        return tmp_path

    return save


def test_metas_pieces(meta_folder):
    checkpoint = open_checkpoint(meta_folder())
    checkpoint.check()
    assert dataclasses.replace(checkpoint.config, context=TINY.context) == TINY


@pytest.mark.parametrize("keep", [0, 100, 5000, -100])
def test_a_pth_file_cut_short(meta_folder, keep):
    file = meta_folder() / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"consolidated\.01\.pth.* cut short"):
        open_checkpoint(file.parent)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_piece(meta_folder, number):
    folder = meta_folder()
    (folder / "consolidated.01.pth").rename(folder / "consolidated.03.pth")
    (folder / "consolidated.03.pth").rename(folder / f"consolidated.{number or 3:02d}.pth")
    if number == 0:
        (folder / "consolidated.00.pth").unlink()
    if number == 1:  # the last one is gone: the shapes tell
        (folder / "consolidated.01.pth").unlink()
        with pytest.raises(CorruptFileError, match=r"has shape \(128, 64\)|has shape \(32, 64\)"):
            open_checkpoint(folder).check()
        return
    with pytest.raises(MissingFileError, match=rf"consolidated\.0{number and 1}\.pth"):
        open_checkpoint(folder)


NORM = "layers.1.ffn_norm.weight"
WO = "layers.0.attention.wo.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: [piece.pop(NORM) for piece in p], f"lacks the tensor {NORM}"),
        (lambda p: p[1].pop(NORM), f"consolidated.01.pth .* different tensors.* {NORM}"),
        (lambda p: [piece.update(extra=piece[NORM]) for piece in p], "no Llama .*: extra"),
        (
            lambda p: [piece.update({NORM: piece[NORM][:63]}) for piece in p],
            rf"{NORM} has shape \(63,\)",
        ),
        (
            lambda p: p[1].update({NORM: p[1][NORM][:63]}),
            rf"consolidated.01.pth: tensor {NORM} has shape \(63,\)",
        ),
        (
            lambda p: [piece.update({NORM: piece[NORM].long()}) for piece in p],
            f"{NORM} is int64",
        ),
        (
            lambda p: p[1].update({NORM: p[1][NORM].half()}),
            f"consolidated.01.pth: tensor {NORM} is float16",
        ),
        (
            lambda p: [piece.pop("tok_embeddings.weight") for piece in p],
            "lacks the matrix tok_embeddings",
        ),
        (lambda p: p[0].update({"tok_embeddings.weight": p[0][NORM]}), "matrix tok_embeddings"),
        (lambda p: [q.update({WO: q[NORM]}) for q in p], rf"{WO} has shape"),
        (lambda p: p[1].update({3: p[1][NORM]}), "not a table of tensors"),
        (lambda p: p[1].update(epoch=3), "consolidated.01.pth is not a table of tensors"),
    ],
)
def test_tensors_of_metas_that_do_not_fit(meta_folder, change, says):
    with pytest.raises(CorruptFileError, match=says):
        open_checkpoint(meta_folder(change)).check()


@pytest.mark.parametrize("change", [{"n_layers": 3}, {"dim": 128}, {"n_kv_heads": 4}])
def test_params_that_contradict_the_tensors(meta_folder, change):
    folder = meta_folder()
    content = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(content | change))
    with pytest.raises(CorruptFileError, match=r"lacks the tensor|has shape"):
        open_checkpoint(folder).check()


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_wants_to_run_code(meta_folder, tmp_path):
    mark = tmp_path / "ran"
    folder = meta_folder(lambda pieces: pieces[1].update(evil=_Evil(mark)))
    with pytest.raises(CorruptFileError, match=r"consolidated\.01\.pth .*holds code"):
        open_checkpoint(folder)
    assert not mark.exists()
    import pickle

    (folder / "consolidated.01.pth").write_bytes(pickle.dumps(_Evil(mark)))
    with pytest.raises(CorruptFileError, match=r"consolidated\.01\.pth"):
        open_checkpoint(folder)
    assert not mark.exists()
