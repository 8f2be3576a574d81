"""Where tokenizers come from: each function reads one kind of file into a `Tokenizer`'s fields."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_nb import byte_pairs, sentence_pieces
from llama_nb.config_files import read_json
from llama_nb.errors import CorruptFileError, InputError, MissingFileError
from llama_nb.gguf_reader import gguf_reader

# A model may end its turn with any of these; fine-tunes disagree on which, so all stop it.
_STOPS = (
    *("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|im_end|>", "<|endoftext|>", "</s>", "<｜end▁of▁sentence｜>"),
)
_CHAT_MARKS = {
    "<|start_header_id|>": "llama3",
    "<|im_start|>": "chatml",
    "<｜Assistant｜>": "deepseek",
    "[INST]": "llama2",
}
_GGUF_PATTERNS = {
    "llama-bpe": byte_pairs.LLAMA3_PATTERN,
    "smollm": byte_pairs.SMOLLM_PATTERN,
    "gpt-2": byte_pairs.GPT2_PATTERN,
    "default": byte_pairs.GPT2_PATTERN,
}
_CONTROL, _USER_DEFINED = 3, 4  # the token types of GGUF that matter here


def existing(path: str | Path) -> Path:
    """Return the path of a file, or raise MissingFileError."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; name a tokenizer file or its folder.")
    return path


def llama3_special_names() -> list[str]:
    """Return the 256 special tokens of Llama 3 in the order of their ids, as Meta names them."""
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(246)]
    return [
        *("<|begin_of_text|>", "<|end_of_text|>", *reserved[:2], "<|finetune_right_pad_id|>"),
        *("<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        *("<|python_tag|>", "<|image|>", *reserved[2:]),
    ]


def read_llama3(path: str | Path) -> dict[str, Any]:
    """Read Meta's `tokenizer.model` of Llama 3."""
    return llama3(byte_pairs.read_tiktoken(existing(path)))


def llama3(pieces: list[bytes]) -> dict[str, Any]:
    """Return the fields of a Llama 3 tokenizer that has these pieces before its special tokens."""
    names = llama3_special_names()
    special = {name: len(pieces) + i for i, name in enumerate(names)}
    pairs = byte_pairs.BytePairs(
        [*pieces, *(name.encode() for name in names)],
        range(len(pieces)),
        byte_pairs.LLAMA3_PATTERN,
    )
    return {
        "vocabulary": pairs,
        "special": special,
        "bos_id": special["<|begin_of_text|>"],
        "eos_id": special["<|end_of_text|>"],
        "add_bos": True,
        "stop_ids": _stops(special),
    }


def read_sentencepiece(path: str | Path) -> dict[str, Any]:
    """Read Meta's `tokenizer.model` of Llama 1 and 2."""
    path = existing(path)
    return _piece_fields(sentence_pieces.SentencePieces(path.read_bytes(), str(path)))


def read_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read the tokenizer in a GGUF file's metadata."""
    prefix = "tokenizer.ggml."
    own = {key.removeprefix(prefix): metadata[key] for key in metadata if key.startswith(prefix)}
    kind, names = own.get("model"), own.get("tokens")
    lists = ("scores", "token_type") if kind == "llama" else ("merges",)
    lacking = [key for key in ("model", "tokens", *lists) if not own.get(key)]
    if lacking or kind not in ("gpt2", "llama"):
        wrong = f"lacks {prefix}{lacking[0]}" if lacking else f"is of the kind {kind!r}"
        raise InputError(
            f"The GGUF file's tokenizer {wrong}; name another tokenizer file of the same model."
        )
    types = own.get("token_type") or [1] * len(names)
    for key, values in (("types", types), ("scores", own.get("scores") or types)):
        if len(values) != len(names):
            raise CorruptFileError(
                f"The GGUF file's tokenizer has {len(names)} tokens but {len(values)} {key}; "
                "fetch the file again."
            )
    where = "The GGUF file's tokenizer"
    template = _read_template(metadata.get("tokenizer.chat_template"))
    if kind == "llama":
        model = sentence_pieces.sentencepiece_model(
            names, own["scores"], types, bool(own.get("add_space_prefix", True))
        )
        fields = _piece_fields(sentence_pieces.SentencePieces(model, where))
        return {**fields, **template, "add_bos": bool(own.get("add_bos_token", True))}
    special = {name: i for i, name in enumerate(names) if types[i] in (_CONTROL, _USER_DEFINED)}
    # The first GGUF files of Llama 3 do not say how words are split.
    pre = own.get("pre") or ("llama-bpe" if "<|begin_of_text|>" in special else "default")
    if pre not in _GGUF_PATTERNS:
        raise InputError(
            f"{where} splits words as {pre!r}, not as one of {', '.join(_GGUF_PATTERNS)}; "
            "name another tokenizer file of the same model."
        )
    llama3 = pre == "llama-bpe"
    pairs = byte_pairs.from_merges(
        dict(enumerate(names)),
        special,
        own["merges"],
        _GGUF_PATTERNS[pre],
        whole_words=llama3,
        where=where,
    )
    ends = (own.get(f"{name}_token_id") for name in ("eos", "eot", "eom"))
    return {
        "vocabulary": pairs,
        "special": special,
        "bos_id": own.get("bos_token_id"),
        "eos_id": own.get("eos_token_id"),
        "add_bos": bool(own.get("add_bos_token", llama3)),
        "stop_ids": _stops(special, *ends),
        "shown": frozenset(i for i in special.values() if types[i] == _USER_DEFINED),
        **template,
    }


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file as plain Python values."""
    try:
        fields = gguf_reader(path).fields
        return {name: field.contents() for name, field in fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise CorruptFileError(
            f"{path} is not a whole GGUF file ({error}); fetch it again."
        ) from None


def read_hf(folder: str | Path) -> dict[str, Any]:
    """Read a Hugging Face folder: `tokenizer.json` and the small files beside it."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    spec = read_json(path)
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "generation_config.json", "tokenizer_config.json"):
        settings |= read_json(folder / name) if (folder / name).is_file() else {}
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    chat = _read_template(settings.get("chat_template"))
    try:
        pattern = _read_pattern(spec)
        if pattern is not None:
            added = {token["content"]: token for token in spec.get("added_tokens") or []}
            special = {name: int(token["id"]) for name, token in added.items()}
            names = {int(i): name for name, i in spec["model"]["vocab"].items()}
            merges = list(spec["model"]["merges"])
            whole_words = bool(spec["model"].get("ignore_merges"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(f"{path} is incomplete ({error!r}); fetch it again.") from None
    if pattern is None:
        # Llama 2's is another spelling of the SentencePiece model beside it, which we can read.
        if (folder / "tokenizer.model").is_file():
            return {**read_sentencepiece(folder / "tokenizer.model"), **chat}
        raise InputError(
            f"{path} is not a byte-level BPE tokenizer such as Llama 3's; "
            "for Llama 1 and 2 put the model's tokenizer.model beside it."
        )
    names |= {i: name for name, i in special.items()}
    pairs = byte_pairs.from_merges(
        names, special, merges, pattern, whole_words=whole_words, where=str(path)
    )
    # Older files name a token by an object that holds its text.
    texts = (settings.get("bos_token"), settings.get("eos_token"))
    bos, eos = (special.get(t.get("content") if isinstance(t, dict) else t) for t in texts)
    ends, add_bos = settings.get("eos_token_id"), settings.get("add_bos_token")
    return {
        "vocabulary": pairs,
        "special": special,
        "bos_id": bos,
        "eos_id": eos,
        "add_bos": _adds_bos(spec, bos) if add_bos is None else bool(add_bos),
        "stop_ids": _stops(special, eos, *(ends if isinstance(ends, list) else [ends])),
        "shown": frozenset(special[n] for n, token in added.items() if not token.get("special")),
        **chat,
    }


def _piece_fields(pieces: sentence_pieces.SentencePieces) -> dict[str, Any]:
    return {
        "vocabulary": pieces,
        "special": pieces.control,
        "bos_id": pieces.bos_id if pieces.bos_id >= 0 else None,
        "eos_id": pieces.eos_id if pieces.eos_id >= 0 else None,
        "add_bos": True,
        "stop_ids": _stops(pieces.control, pieces.eos_id),
    }


def _stops(special: Mapping[str, int], *ends: int | None) -> frozenset[int]:
    named = {special[name] for name in _STOPS if name in special}
    return frozenset(named | {int(end) for end in ends if end is not None and end >= 0})


def _read_template(template: Any) -> dict[str, Any]:
    """Return what a chat template says, by its marks: we do not run templates, we know them."""
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    template = template or ""
    default = re.search(r"<\|im_start\|>system(?:\n|\\n)([^'\"{}]+?)<\|im_end\|>", template)
    return {
        "chat_format": next((_CHAT_MARKS[mark] for mark in _CHAT_MARKS if mark in template), None),
        "default_system": default and default[1],
        "opens_thought": bool(re.search(r"<｜Assistant｜><think>(?:\n|\\n)", template)),
    }


def _read_pattern(spec: Mapping[str, Any]) -> str | None:
    """Return the splitting pattern of a `tokenizer.json`, None if it is not byte-level BPE."""
    steps = spec["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if spec["model"]["type"] != "BPE" or spec.get("normalizer") or kinds[-1:] != ["ByteLevel"]:
        return None
    last = steps[-1]
    if last.get("add_prefix_space"):
        return None
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        split = steps[0]
        if split["behavior"] == "Isolated" and not split.get("invert"):
            return split["pattern"].get("Regex")
    if last.get("use_regex", True):
        if kinds == ["ByteLevel"]:
            return byte_pairs.GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return byte_pairs.SMOLLM_PATTERN
    return None


def _adds_bos(spec: Mapping[str, Any], bos: int | None) -> bool:
    """Return whether the file's post-processor begins a text with the begin token."""
    last = spec.get("post_processor") or {}
    for step in last.get("processors", [last]):
        for part in step.get("single") or []:
            name = part.get("SpecialToken", {}).get("id")
            ids = step.get("special_tokens", {}).get(name, {}).get("ids", [])
            return bos is not None and bos in ids
    return False
