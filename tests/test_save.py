"""Weights in memory as a folder: what comes back is what was saved."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import llama_nb
from llama_nb import presets
from llama_nb.chat import encode_chat
from llama_nb.checkpoint.save import save
from llama_nb.data import train_bpe
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of
from llama_nb.tokenizer import Tokenizer

DOCUMENTS = [
    {"text": f"The {animal} runs {n} times."}
    for animal in ("cat", "dog", "llama")
    for n in range(9)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, 270)


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(presets.get("tiny"), vocab_size=270)


@pytest.fixture(scope="module")
def params(config):
    return params_of(Llama(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("tied", [True, False])
def test_what_comes_back(tmp_path, config, tokenizer, tied):
    config = dataclasses.replace(config, tied=tied)
    params = params_of(Llama(config, rngs=nnx.Rngs(1)))
    target = save(tmp_path / "model", config, params, tokenizer, dtype="float32")
    model, read = llama_nb.load(target, dtype="float32")
    assert model.config == config
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params_of(model)), strict=True):
        np.testing.assert_array_equal(a, b)
    text = "The llama runs 3 times.\n\n  été"
    assert read.encode(text, bos=True) == tokenizer.encode(text, bos=True)
    assert (read.bos_id, read.eos_id, read.add_bos) == (tokenizer.bos_id, tokenizer.eos_id, True)
    assert read.stop_ids == tokenizer.stop_ids
    assert not list(tmp_path.glob("*.partial"))


def test_int8_and_back(tmp_path, config, params, tokenizer):
    target = save(tmp_path / "model", config, params, tokenizer, quant="int8")
    model, _ = llama_nb.load(target, dtype="float32", quant="int8")
    packed = params_of(model)
    again = save(tmp_path / "again", config, packed, tokenizer, dtype="float32")
    wide = params_of(llama_nb.load(again, dtype="float32")[0])
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(wide), strict=True):
        scale = np.abs(a).max()
        np.testing.assert_allclose(a, b, atol=scale / 100)


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("chatml", ["<|im_start|>", "<|im_end|>"]),
        ("llama3", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
        ("deepseek", ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>"]),
    ],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_how_it_is_spoken_to_comes_along(tmp_path, config, tokenizer, format, names, system):
    V = tokenizer.vocab_size
    special = dict(tokenizer.special) | {name: V + i for i, name in enumerate(names)}
    pieces = tokenizer.vocabulary
    vocabulary = type(pieces)(
        [*pieces.pieces, *(name.encode() for name in names)], pieces.ranks.values(), pieces.pattern
    )
    eos = special.get("<｜end▁of▁sentence｜>", tokenizer.eos_id)
    chatty = dataclasses.replace(
        tokenizer,
        vocabulary=vocabulary,
        special=special,
        chat_format=format,
        eos_id=eos,
        default_system=system if format == "chatml" else None,
        opens_thought=format == "deepseek",
    )
    config = dataclasses.replace(config, vocab_size=chatty.vocab_size)
    params = params_of(Llama(config, rngs=nnx.Rngs(0)))
    folder = save(tmp_path / "model", config, params, chatty)
    read = Tokenizer.from_hf(folder)
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    for talk, opened in (([messages[0]], True), (messages, False)):
        ids = encode_chat(chatty, talk, add_generation_prompt=opened)
        assert encode_chat(read, talk, add_generation_prompt=opened) == ids
        transformers = pytest.importorskip("transformers")
        peer = transformers.AutoTokenizer.from_pretrained(folder)
        text = peer.apply_chat_template(talk, tokenize=False, add_generation_prompt=opened)
        assert text == chatty.decode(ids)


def test_what_is_not_written(tmp_path, config, params, tokenizer):
    other = dataclasses.replace(config, vocab_size=300)
    with pytest.raises(InputError, match=r"embed has shape \(270, 64\), and the config says"):
        save(tmp_path / "model", other, params)
    with pytest.raises(InputError, match="dtype is 'float16'"):
        save(tmp_path / "model", config, params, dtype="float16")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("")
    with pytest.raises(InputError, match="taken is there already; name a new or empty folder"):
        save(tmp_path / "taken", config, params, tokenizer)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "notes"]


def test_cut_short_it_is_not_there(tmp_path, config, params, tokenizer, monkeypatch):
    from llama_nb.checkpoint import save as module

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "to_hf", fail)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "model", config, params, tokenizer)
    assert not (tmp_path / "model").exists()
    assert save(tmp_path / "model", config, params, tokenizer).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
