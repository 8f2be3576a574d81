"""Checkpoints by `transformers` into our model, and ours into `transformers`: the same logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from llama_nb import presets
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.checkpoint.names import entries
from llama_nb.checkpoint.save import convert
from llama_nb.config_files import from_hf, to_hf
from llama_nb.model import with_params
from llama_nb.tokenizer import load as load_tokenizer

pytestmark = pytest.mark.parity

SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "llama2": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "llama3.1": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_parameters": {**SCALING, "factor": 8.0, "rope_theta": 500_000.0},
    },
    "llama3.2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {**SCALING, "factor": 32.0, "rope_theta": 500_000.0},
    },
}
IDS = np.random.default_rng(0).integers(0, 320, (2, 100))


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="the reference needs torch")
    module = pytest.importorskip("transformers", reason="the reference is transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


def build(transformers, name):
    """A random model of `transformers`, its norms not all ones."""
    import torch

    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=96 if name == "llama3.2" else 128,
        intermediate_size=160,
        num_hidden_layers=3,
        max_position_embeddings=512,
        initializer_range=0.05,
        **SHAPES[name],
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if "norm" in parameter:
                weight.uniform_(0.5, 1.5)
    return model


def logits_of(model, ids=IDS):
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


def ours(folder):
    checkpoint = open_checkpoint(folder)
    return with_params(checkpoint.config, load_params(checkpoint))


def theirs(transformers, folder):
    import torch

    kind = transformers.AutoModelForCausalLM
    model, loading = kind.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not any(loading.values()), loading
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_a_saved_model(transformers, tmp_path, name):
    model = build(transformers, name)
    model.save_pretrained(tmp_path, max_shard_size="150KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    expected = logits_of(model)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours(tmp_path)(jnp.asarray(IDS)), expected, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_after_converting(transformers, tmp_path, name):
    model = build(transformers, name)
    model.save_pretrained(tmp_path / "a")
    folder = convert(tmp_path / "a", tmp_path / "b", dtype="float32", max_shard_bytes=150_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    np.testing.assert_array_equal(logits_of(theirs(transformers, folder)), logits_of(model))


@pytest.mark.parametrize("name", ["llama1-7b", "llama3-8b", "llama3.1-8b", "llama3.2-1b"])
def test_transformers_understands_our_config(transformers, name):
    config = presets.get(name)
    read = transformers.LlamaConfig.from_dict(to_hf(config))
    assert from_hf(read.to_dict()) == config


@pytest.mark.parametrize("name", ["llama1", "llama3.1"])
def test_metas_model_in_transformers(transformers, meta, tmp_path, name):
    """Meta's weights, saved by torch, converted here, run by Hugging Face: three parties agree."""
    import torch

    args = {"dim": 128, "n_layers": 2, "vocab_size": 320, "multiple_of": 32, "n_heads": 8}
    args |= {"n_kv_heads": 2, "rope_theta": 500_000.0, "use_scaled_rope": name == "llama3.1"}
    reference = meta(max_seq_len=128, **args)
    (tmp_path / "a").mkdir()
    torch.save(reference.state_dict(), tmp_path / "a" / "consolidated.00.pth")
    (tmp_path / "a" / "params.json").write_text(json.dumps(args))
    folder = convert(tmp_path / "a", tmp_path / "b", dtype="float32")
    expected = reference(torch.tensor(IDS), 0).numpy()
    np.testing.assert_allclose(logits_of(theirs(transformers, folder)), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama2", "llama3.2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_in_transformers(transformers, tmp_path, name, dtype):
    pytest.importorskip("compressed_tensors", reason="transformers reads int8 with it")
    build(transformers, name).save_pretrained(tmp_path / "a")
    folder = convert(tmp_path / "a", tmp_path / "b", dtype=dtype, quant="int8")
    checkpoint = open_checkpoint(folder)
    params = {}
    for entry in entries(checkpoint.config):
        values, scales = checkpoint.read(entry).astype(np.float32), checkpoint.scales(entry)
        if scales is not None:
            outputs = entry.shape[values.ndim - entry.outputs :] if entry.outputs else (-1, 1)
            values = values * scales.reshape(outputs)
        params[entry.path] = jnp.asarray(values)
    expected = with_params(checkpoint.config, unflatten_dict(params))(jnp.asarray(IDS))
    got = logits_of(theirs(transformers, folder))
    np.testing.assert_allclose(got, expected, atol=1e-4)


# The real model


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def exported(request, smollm2_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "smollm2"
    return convert(smollm2_path, folder, dtype=request.param, max_shard_bytes=100_000_000)


@pytest.mark.slow
def test_the_real_model_says_the_same(transformers, exported, smollm2, greedy):
    from llama_nb.chat import encode_chat

    reference = theirs(transformers, exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(exported), local_files_only=True)
    # Of bfloat16 weights too both compute in float32.
    model = smollm2.model if "float32" in str(exported) else ours(exported)
    for question in ("What is the capital of France?", "Write a haiku about the sea."):
        messages = [{"role": "user", "content": question}]
        ids = encode_chat(smollm2.tokenizer, messages)
        assert ids == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        got, expected = greedy(model, reference, ids, 32)
        assert got == expected


@pytest.mark.slow
def test_the_real_models_weights(exported, smollm2):
    from llama_nb.model import params_of

    dtype = jnp.float32 if "float32" in str(exported) else jnp.bfloat16
    got = load_params(open_checkpoint(exported), dtype)
    expected = jax.tree.map(lambda x: np.asarray(x.astype(dtype)), params_of(smollm2.model))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# Tokenizers made from a GGUF file or from Meta's

TEXTS = [
    "The capital of France is Paris, isn't it?",
    "  two spaces, 1234567 digits\n\n\ttabs  and trailing ",
    "Il était une fois – 🐈 – 猫 \x00 한국어 e\u0301",
    "<|im_start|>user\nHi<|im_end|>\n<|eot_id|><|begin_of_text|>",
    "def f(x):\n    return x['s'] + 3.14159e-10  # I'LL\r\n",
]


def same_ids(transformers, folder, original):
    """The folder's files, in `transformers` and here, give what the original tokenizer gives."""
    reference = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    again = load_tokenizer(folder)
    for text in TEXTS:
        expected = original.encode(text, bos=original.add_bos, allow_special=True)
        assert reference(text)["input_ids"] == expected, text
        assert again.encode(text, bos=again.add_bos, allow_special=True) == expected, text
        assert reference.decode(expected, skip_special_tokens=True) == original.decode(
            expected, skip_special=True
        )
    for name in ("bos_id", "eos_id", "add_bos", "stop_ids", "special", "chat_format"):
        assert getattr(again, name) == getattr(original, name), name
    assert again.default_system == original.default_system
    assert (reference.bos_token_id, reference.eos_token_id) == (original.bos_id, original.eos_id)
    return reference


def same_conversations(reference, original):
    from llama_nb.chat import encode_chat

    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Ho. "},
        {"role": "user", "content": "a cat's hat"},
    ]
    for messages in (turns[1:2], turns[:2], turns[1:], turns):
        expected = reference.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert encode_chat(original, messages) == expected


def extras(source, folder):
    """Write only what goes beside the weights."""
    from types import SimpleNamespace

    from llama_nb.checkpoint.save import _put
    from llama_nb.checkpoint.tokens import tokenizer_files

    checkpoint = SimpleNamespace(config=presets.get("llama3-8b"))
    if source.suffix == ".gguf":
        checkpoint = open_checkpoint(source)
    made = tokenizer_files(source, checkpoint)
    assert made.note is None
    for name, content in made.files.items():
        _put(folder / name, content)
    (folder / "config.json").write_text(json.dumps(to_hf(checkpoint.config) | made.token_ids))


@pytest.mark.slow
def test_smollm2s_tokenizer(transformers, smollm2_path, smollm2, tmp_path):
    extras(smollm2_path, tmp_path)
    reference = same_ids(transformers, tmp_path, smollm2.tokenizer)
    assert reference.pad_token == "<|im_end|>"


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_llama_2s_kind(transformers, tmp_path, prefix):
    sentencepiece = pytest.importorskip("sentencepiece")
    words = ["the cat sat on the mat", "a dog ate  the\tcat's hat", "naïve Köln 漢字 12345"] * 20
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (tmp_path / "a" / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words + [text.replace("\x00", "") for text in TEXTS]),
            model_writer=file,
            vocab_size=420,
            model_type="bpe",
            byte_fallback=True,
            add_dummy_prefix=prefix,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    extras(tmp_path / "a", tmp_path / "b")
    original = load_tokenizer(tmp_path / "a")
    reference = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "b"))
    again = load_tokenizer(tmp_path / "b")
    for text in [*TEXTS, "the cat", "  the  cat ", "a</s>b<s> c", "☃☃ new", ""]:
        expected = original.encode(text, bos=True, allow_special=True)
        assert reference(text)["input_ids"] == expected, text
        assert again.encode(text, bos=True, allow_special=True) == expected, text
        if "</s>" not in text:
            assert reference.decode(expected, skip_special_tokens=True) == original.decode(
                expected, skip_special=True
            )
    assert (reference.bos_token, reference.eos_token) == ("<s>", "</s>")
    assert again.chat_format == "llama2"
    same_conversations(reference, original)


@pytest.mark.slow
def test_llama3s_tokenizer(transformers, tmp_path):
    import shutil

    from llama_nb import assets

    path = assets.fetch(assets.LLAMA3_TOKENIZER)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "a" / "tokenizer.model")
    extras(tmp_path / "a", tmp_path / "b")
    original = load_tokenizer(path)
    reference = same_ids(transformers, tmp_path / "b", original)
    same_conversations(reference, original)
