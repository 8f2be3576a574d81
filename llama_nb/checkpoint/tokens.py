"""The tokenizer that goes with a converted model, in the files that `transformers` reads."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from llama_nb import byte_pairs, sentence_pieces
from llama_nb import tokenizer as tokenizers
from llama_nb.checkpoint.base import Checkpoint
from llama_nb.config_files import read_json
from llama_nb.errors import LlamaError, MissingFileError
from llama_nb.tokenizer import Tokenizer

_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "generation_config.json"),
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# How each chat format is written: Meta's own files leave it to the code, and so does memory.
_TEMPLATES = {
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama2": (
        "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim"
        " + ' [/INST]' }}{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "chatml": (
        "DEFAULT{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "deepseek": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ message['content'] }}{% elif message['role'] == 'user' %}"
        "{{ '<｜User｜>' + message['content'] }}{% else %}"
        "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>THOUGHT' }}{% endif %}"
    ),
}


@dataclasses.dataclass(frozen=True)
class Extras:
    """What goes into a folder beside the weights.

    Attributes
    ----------
    files
        Name to content; a dict is written as JSON.
    token_ids
        For `config.json`: which tokens begin and end a text.
    note
        What the reader should know, if there is no tokenizer.
    """

    files: dict[str, bytes | dict[str, Any]]
    token_ids: dict[str, Any]
    note: str | None = None


def tokenizer_files(source: Path, checkpoint: Checkpoint) -> Extras:
    """Return the tokenizer's files: copied from a Hugging Face folder, or made for it."""
    if (source / "config.json").is_file():
        files = {n: (source / n).read_bytes() for n in _COPIED if (source / n).is_file()}
        written = read_json(source / "config.json")
        ids = {key: written[key] for key in _TOKEN_IDS if key in written}
        known = any(name.startswith("tokenizer.") for name in files)
        return Extras(files, ids, None if known else _no_tokenizer(source))
    metadata = getattr(checkpoint, "metadata", {})
    try:
        tokenizer = Tokenizer.from_gguf(metadata) if metadata else tokenizers.load(source)
    except MissingFileError:
        return Extras({}, {}, _no_tokenizer(source))
    except LlamaError as error:  # The weights are good without it.
        return Extras({}, {}, f"no tokenizer was written: {error}")
    template = metadata.get("tokenizer.chat_template") if metadata else template_of(tokenizer)
    pad = metadata.get("tokenizer.ggml.padding_token_id")
    return described(tokenizer, checkpoint.config.context, template, pad)


def described(
    tokenizer: Tokenizer, context: int, template: str | None = None, pad: int | None = None
) -> Extras:
    """Return a tokenizer's files.

    Parameters
    ----------
    context
        The longest text of the model that it belongs to, in tokens.
    template
        How a conversation is written, as `transformers` reads it.
    pad
        The token that fills rows, if there is one.
    """
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    names = {i: name for name, i in tokenizer.special.items()}
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    marks = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": pad}
    settings |= {key: names[token] for key, token in marks.items() if token in names}
    if template is not None:
        settings["chat_template"] = template
    files: dict[str, bytes | dict[str, Any]] = {"tokenizer.json": tokenizer_json(tokenizer)}
    if isinstance(tokenizer.vocabulary, sentence_pieces.SentencePieces):
        # What this package reads of Llama 1 and 2; tokenizer.json is for `transformers`.
        files["tokenizer.model"] = tokenizer.vocabulary.processor.serialized_model_proto()
    ends = sorted(tokenizer.stop_ids)
    generation = {**ids, "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id}
    files |= {"tokenizer_config.json": settings, "generation_config.json": generation}
    return Extras(files, ids)


def template_of(tokenizer: Tokenizer) -> str | None:
    """Return the template of a tokenizer's chat format, for files that brought none."""
    template = _TEMPLATES.get(tokenizer.chat_format or "")
    if template is None:
        return None
    first = ""
    if tokenizer.default_system is not None:
        first = f"<|im_start|>system\n{tokenizer.default_system}<|im_end|>\n"
        first = "{% if messages[0]['role'] != 'system' %}" + first + "{% endif %}"
    thought = "<think>\n" if tokenizer.opens_thought else ""
    return template.replace("DEFAULT", first).replace("THOUGHT", thought)


def _no_tokenizer(source: Path) -> str:
    return f"{source} has no tokenizer, so none was written; copy one beside the result."


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer as the `tokenizers` library, and so `transformers`, spells it."""
    special = {i: name for name, i in tokenizer.special.items()}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytewise = isinstance(tokenizer.vocabulary, byte_pairs.BytePairs)
    steps = _byte_pairs(tokenizer) if bytewise else _pieces(tokenizer.vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": special[i], **added, "special": i not in tokenizer.shown}
            for i in sorted(special)
        ],
        "post_processor": _post_processor(tokenizer),
        **steps,
    }


def _byte_pairs(tokenizer: Tokenizer) -> dict[str, Any]:
    pairs, special = tokenizer.vocabulary, set(tokenizer.special.values())
    vocab = {_spell(piece): i for i, piece in enumerate(pairs.pieces) if i not in special}
    # Special tokens past the end are added ones only; among the others they need their place.
    last = max(vocab.values())
    vocab |= {name: i for name, i in tokenizer.special.items() if i < last}
    return {
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pairs.pattern),
        "decoder": _byte_level(True),
        "model": {
            **_bpe(vocab, [list(map(_spell, pair)) for pair in merges(pairs.ranks)]),
            "ignore_merges": pairs.pattern == byte_pairs.LLAMA3_PATTERN,
        },
    }


def _pieces(pieces: sentence_pieces.SentencePieces) -> dict[str, Any]:
    library, names = pieces.processor, pieces.names
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    backwards = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    first = [{"type": "Prepend", "prepend": "▁"}] if pieces.dummy_prefix else []
    last = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if pieces.dummy_prefix else []
    ranks = {
        name: -library.GetScore(i)
        for i, name in enumerate(names)
        if name not in pieces.control and not library.IsByte(i)
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [backwards, {"type": "ByteFallback"}, {"type": "Fuse"}, *last],
        },
        "model": {
            **_bpe({name: i for i, name in enumerate(names)}, list(map(list, merges(ranks)))),
            "unk_token": names[library.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _bpe(vocab: Mapping[str, int], pairs: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "merges": pairs,
    }


Piece = TypeVar("Piece", bytes, str)
_LETTERS = {byte: letter for letter, byte in byte_pairs.byte_letters().items()}


def _spell(piece: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in piece)


def merges(ranks: Mapping[Piece, float]) -> list[tuple[Piece, Piece]]:
    """Return the pair that each piece is merged from, first merged first.

    Ranks say which pieces there are; which two parts make a piece is found by merging its bytes or
    letters with the lower ranks only. Merging inside a longer word ends with the same two, since no
    other merge can happen between them. A piece that no two parts make (Llama 3 has some, taken as
    whole words) is left out.
    """
    found = []
    for piece, own in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 2:
            steps = (ranks.get(a + b, own) for a, b in itertools.pairwise(parts))
            rank, place = min((rank, place) for place, rank in enumerate(steps))
            if rank >= own:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == byte_pairs.GPT2_PATTERN:
        return _byte_level(True)
    if pattern == byte_pairs.SMOLLM_PATTERN:
        first, use_regex = {"type": "Digits", "individual_digits": True}, True
    else:
        split = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        first, use_regex = {"type": "Split", **split}, False
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(use_regex)]}


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return the step that begins a text with the begin token, if one is wanted."""
    if not tokenizer.add_bos or tokenizer.bos_id is None:
        return None
    name = next(n for n, i in tokenizer.special.items() if i == tokenizer.bos_id)

    def text(label: str, kind: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": name, "type_id": kind}},
            {"Sequence": {"id": label, "type_id": kind}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
    }
