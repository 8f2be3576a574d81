"""Readers on small files of the real formats, whole and damaged."""

import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from llama_nb import presets
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.checkpoint.names import entries, interleave, split_halves
from llama_nb.errors import CorruptFileError, InputError, MissingFileError
from llama_nb.model import Llama, params_of

TINY = presets.get("tiny")


def _hf_config(config=TINY):
    return {
        "model_type": "llama",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffn_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_hidden_layers": config.num_layers,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab_size,
    }


def _value(params, entry):
    for key in entry.path:
        params = params[key]
    return np.asarray(params)


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


@pytest.fixture
def hf_folder(tmp_path, params):
    from safetensors.numpy import save_file

    tensors = {e.hf: _stored(_value(params, e), e) for e in entries(TINY)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(_hf_config()))
    return tmp_path


@pytest.fixture
def gguf_file(tmp_path, params):
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
        matrix = _stored(_value(params, entry), entry)
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


def test_bfloat16_keeps_its_bits(tmp_path, params):
    torch = pytest.importorskip("torch", reason="the file is written by torch")
    from safetensors.torch import save_file

    tensors = {
        e.hf: torch.tensor(_stored(_value(params, e), e)).to(torch.bfloat16) for e in entries(TINY)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(_hf_config()))
    loaded = load_params(open_checkpoint(tmp_path), jnp.bfloat16)
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
    (hf_folder / "config.json").write_text(json.dumps(_hf_config(other)))
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
    assert seen[-1][0] == seen[-1][1] == 4 * TINY.param_count()
    assert seen == sorted(seen)
