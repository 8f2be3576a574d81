import dataclasses

import jax
import numpy as np
import pytest

from llama_nb import config_files, presets
from llama_nb.config import LlamaConfig, RopeScaling
from llama_nb.errors import CorruptFileError, InputError, MissingFileError
from llama_nb.model import Llama, params_of

COUNTS = {
    "llama1-7b": 6_738_415_616,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "deepseek-r1-distill-llama-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name):
    assert presets.get(name).param_count() == COUNTS[name]


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "llama3.2-1b", "llama3.1-405b"])
def test_count_is_that_of_the_model_tree(name):
    model = Llama(presets.get(name))
    sizes = [np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params_of(model))]
    assert sum(sizes) == presets.get(name).param_count()


def test_meta_params_of_llama_3_1_8b():
    params = {
        "dim": 4096,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "n_heads": 32,
        "n_kv_heads": 8,
        "n_layers": 32,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
        "vocab_size": 128256,
    }
    assert config_files.from_meta(params) == presets.get("llama3.1-8b")


def test_meta_params_of_llama_1_7b():
    params = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06}
    params["vocab_size"] = -1
    with pytest.raises(InputError, match="vocab_size=32000"):
        config_files.from_meta(params)
    assert config_files.from_meta(params, vocab_size=32_000) == presets.get("llama1-7b")


def _hf_llama_3_2_1b() -> dict:
    return {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }


def test_hf_config_of_llama_3_2_1b():
    assert config_files.from_hf(_hf_llama_3_2_1b()) == presets.get("llama3.2-1b")


def test_hf_config_as_transformers_5_writes_it():
    source = _hf_llama_3_2_1b()
    source["rope_parameters"] = {
        **source.pop("rope_scaling"),
        "rope_theta": source.pop("rope_theta"),
    }
    assert config_files.from_hf(source) == presets.get("llama3.2-1b")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen2"}, "qwen2"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({"num_key_value_heads": 7}, "multiple"),
    ],
)
def test_hf_config_that_no_llama_has(change, says):
    with pytest.raises(InputError, match=says):
        config_files.from_hf({**_hf_llama_3_2_1b(), **change})


def test_gguf_metadata_of_the_default_model():
    metadata = {
        "general.architecture": "llama",
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.block_count": 30,
        "llama.context_length": 8192,
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 100000.0,
        "llama.vocab_size": 49152,
    }
    assert config_files.from_gguf(metadata, tied=True) == presets.get("smollm2-135m")
    with pytest.raises(InputError, match="gemma"):
        config_files.from_gguf({**metadata, "general.architecture": "gemma"}, tied=True)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match=r"smollm2-135m"):
        presets.get("smolm2-135m")


def test_config_refuses_shapes_that_cannot_be():
    tiny = presets.get("tiny")
    for change in ({"head_dim": 15}, {"num_kv_heads": 3}, {"num_layers": 0}, {"vocab_size": 2.5}):
        with pytest.raises(InputError):
            dataclasses.replace(tiny, **change)


def test_config_is_hashable_and_scaling_counts():
    tiny = presets.get("tiny")
    scaled = dataclasses.replace(tiny, rope_scaling=RopeScaling())
    assert len({tiny, scaled, LlamaConfig(**dataclasses.asdict(tiny))}) == 2


def test_flops_are_two_per_matrix_parameter_plus_attention():
    tiny = presets.get("tiny")
    matrices = tiny.param_count() - tiny.vocab_size * tiny.embed_dim - 5 * tiny.embed_dim
    assert tiny.flops_per_token() == 2 * matrices
    assert tiny.flops_per_token(10) - tiny.flops_per_token() == 4 * 2 * 4 * 16 * 10


def test_read_json_says_what_is_wrong(tmp_path):
    with pytest.raises(MissingFileError, match=r"config\.json"):
        config_files.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptFileError, match="not valid JSON"):
        config_files.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="list"):
        config_files.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("num_attention_heads", 0),
        ("num_hidden_layers", None),
        ("vocab_size", 3.5),
        ("intermediate_size", True),
        ("rope_theta", "big"),
        ("rope_theta", float("inf")),
        ("rms_norm_eps", -1e-5),
        ("rope_scaling", "llama3"),
        ("rope_parameters", {"rope_type": "llama3", "factor": "8"}),
        ("max_position_embeddings", []),
    ],
)
def test_hugging_faces_numbers_that_are_none(key, value):
    good = config_files.to_hf(presets.get("tiny"))
    assert config_files.from_hf(good) == presets.get("tiny")
    with pytest.raises(InputError, match=r"config\.json"):
        config_files.from_hf({**good, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", "64"),
        ("n_heads", 0),
        ("n_layers", None),
        ("vocab_size", -7),
        ("multiple_of", 0),
        ("ffn_dim_multiplier", "1.3"),
        ("rope_theta", []),
        ("norm_eps", 0),
    ],
)
def test_metas_numbers_that_are_none(key, value):
    good = {"dim": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 256, "multiple_of": 32}
    assert config_files.from_meta(good).embed_dim == 64
    with pytest.raises(InputError, match=r"params\.json"):
        config_files.from_meta({**good, key: value})
