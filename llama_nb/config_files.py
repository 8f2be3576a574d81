"""A model's shape as files say it: Meta's `params.json`, Hugging Face's `config.json`, GGUF."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_nb.config import LlamaConfig, RopeScaling, llama_ffn_dim
from llama_nb.errors import CorruptFileError, InputError, MissingFileError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or say in one sentence what is wrong with the file."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; a checkpoint folder needs it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds a {type(content).__name__}, not a JSON object.")
    return content


def _need(source: Mapping[str, Any], key: str, where: str) -> Any:
    if source.get(key) is None:
        raise InputError(f"{where} has no {key!r}, which a Llama needs.")
    return source[key]


def _size(source: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """Return a whole number above 0; the default where the source has none or null."""
    value = (
        default if source.get(key) is None and default is not None else _need(source, key, where)
    )
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where} gives {key!r} as {value!r}; it must be a whole number above 0.")
    return value


def _number(source: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """Return a finite number above 0; the default where the source has none or null."""
    value = (
        default if source.get(key) is None and default is not None else _need(source, key, where)
    )
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{where} gives {key!r} as {value!r}; it must be a number above 0.")
    return float(value)


def from_meta(params: Mapping[str, Any], *, vocab_size: int | None = None) -> LlamaConfig:
    """Return the config that Meta's `params.json` describes.

    Parameters
    ----------
    params
        The file's content.
    vocab_size
        For Llama 1 and 2, whose files say -1: the rows of `tok_embeddings` (32,000).

    Raises
    ------
    InputError
        When a number is missing or the vocabulary is unknown.
    """
    where = "params.json"
    dim, heads = _size(params, "dim", where), _size(params, "n_heads", where)
    vocab = vocab_size if params.get("vocab_size", -1) == -1 else _size(params, "vocab_size", where)
    if vocab is None:
        raise InputError(
            "params.json gives no vocabulary size (-1); pass vocab_size=32000 for Llama 1 and 2."
        )
    # Nothing in the file names the generation; scaled RoPE came with 3.1, theta 500,000 with 3.
    scaled = params.get("use_scaled_rope", False)
    theta = _number(params, "rope_theta", where, 10_000.0)
    context = (
        131_072
        if scaled
        else 8192
        if theta >= 500_000
        else 2048
        if params.get("norm_eps") == 1e-6
        else 4096
    )
    multiplier = params.get("ffn_dim_multiplier")
    if multiplier is not None:
        multiplier = _number(params, "ffn_dim_multiplier", where)
    ffn_dim = llama_ffn_dim(dim, _size(params, "multiple_of", where, 256), multiplier)
    return LlamaConfig(
        vocab_size=vocab,
        embed_dim=dim,
        ffn_dim=_size(params, "hidden_dim", where, ffn_dim),
        num_layers=_size(params, "n_layers", where),
        num_heads=heads,
        num_kv_heads=_size(params, "n_kv_heads", where, heads),
        head_dim=_size(params, "head_dim", where, max(1, dim // heads)),
        context=_size(params, "max_seq_len", where, context),
        rope_theta=theta,
        rope_scaling=RopeScaling(factor=_number(params, "rope_scaling_factor", where, 8.0))
        if scaled
        else None,
        norm_eps=_number(params, "norm_eps", where, 1e-5),
    )


def from_hf(config: Mapping[str, Any]) -> LlamaConfig:
    """Return the config that a Hugging Face `config.json` describes (transformers 4 or 5 spelling).

    Raises
    ------
    InputError
        When a number is missing, or the file asks for something no Llama has (another
        architecture, biases, an unknown rotary scaling).
    """
    where = "config.json"
    kind = config.get("model_type", "llama")
    if kind != "llama":
        raise InputError(
            f"config.json describes a {kind!r} model; this package runs 'llama' models."
        )
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise InputError("config.json asks for biases in its projections; no Llama has them.")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(
            f"config.json asks for the activation {config['hidden_act']!r}; Llama uses 'silu'."
        )
    rope = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise InputError(f"config.json gives {key!r} as {config[key]!r}; it must be an object.")
        rope |= config.get(key) or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise InputError(
            f"config.json asks for RoPE scaling {rope_type!r}; 'llama3' and 'default' are known."
        )
    scaling = None
    if rope_type == "llama3":
        scaling = RopeScaling(
            factor=_number(rope, "factor", where),
            low_freq_factor=_number(rope, "low_freq_factor", where, 1.0),
            high_freq_factor=_number(rope, "high_freq_factor", where, 4.0),
            original_context=_size(rope, "original_max_position_embeddings", where, 8192),
        )
    theta = rope if rope.get("rope_theta") is not None else config
    heads, dim = _size(config, "num_attention_heads", where), _size(config, "hidden_size", where)
    return LlamaConfig(
        vocab_size=_size(config, "vocab_size", where),
        embed_dim=dim,
        ffn_dim=_size(config, "intermediate_size", where),
        num_layers=_size(config, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", where, heads),
        head_dim=_size(config, "head_dim", where, max(1, dim // heads)),
        context=_size(config, "max_position_embeddings", where, 2048),
        rope_theta=_number(theta, "rope_theta", where, 10_000.0),
        rope_scaling=scaling,
        norm_eps=_number(config, "rms_norm_eps", where, 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Return the `config.json` of a config, in words that transformers 4 and 5 read alike.

    `from_hf` undoes it. Token ids and the dtype, which a `LlamaConfig` doesn't know, are the
    caller's to add.
    """
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
        "tie_word_embeddings": config.tied,
    }


def from_gguf(metadata: Mapping[str, Any], *, tied: bool, rope_factors: Any = None) -> LlamaConfig:
    """Return the config in a GGUF file's metadata.

    Parameters
    ----------
    metadata
        Key to value, `llama.block_count` and so on.
    tied
        Whether the file lacks `output.weight`; GGUF says it in no other way.
    rope_factors
        The `rope_freqs.weight` tensor, shape (H/2,), of Llama 3.1 and later: what each rotary
        frequency is divided by. Its largest entry is the scaling's factor.

    Raises
    ------
    InputError
        When the architecture is another or a key is missing.
    """
    where = "the GGUF metadata"
    architecture = _need(metadata, "general.architecture", where)
    if architecture != "llama":
        raise InputError(
            f"the GGUF file holds a {architecture!r} model; this package runs 'llama' models."
        )
    heads = _need(metadata, "llama.attention.head_count", where)
    dim = _need(metadata, "llama.embedding_length", where)
    vocab = metadata.get("llama.vocab_size") or len(_need(metadata, "tokenizer.ggml.tokens", where))
    return LlamaConfig(
        vocab_size=int(vocab),
        embed_dim=dim,
        ffn_dim=_need(metadata, "llama.feed_forward_length", where),
        num_layers=_need(metadata, "llama.block_count", where),
        num_heads=heads,
        num_kv_heads=metadata.get("llama.attention.head_count_kv") or heads,
        head_dim=metadata.get("llama.attention.key_length")
        or metadata.get("llama.rope.dimension_count")
        or dim // heads,
        context=_need(metadata, "llama.context_length", where),
        rope_theta=float(metadata.get("llama.rope.freq_base", 10_000.0)),
        rope_scaling=None if rope_factors is None else RopeScaling(factor=float(max(rope_factors))),
        norm_eps=round(float(_need(metadata, "llama.attention.layer_norm_rms_epsilon", where)), 10),
        tied=tied,
    )
