"""The tokenizer's own promises. That its ids are the reference's is tests/parity's business."""

import base64
import dataclasses
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_nb import assets
from llama_nb.byte_pairs import byte_letters
from llama_nb.errors import CorruptFileError, DownloadError, InputError, MissingFileError
from llama_nb.tokenizer import Tokenizer, load

LETTERS = {byte: letter for letter, byte in byte_letters().items()}
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ð ½", "e s"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|im_end|>ing"]
TEMPLATE = "{{'<|im_start|>system\nBe \"kind\"<|im_end|>\n'}}<|im_start|>system\nBe kind<|im_end|>"


def toy(*, missing=(), merges=MERGES, shuffle=False, **changes):
    """Return the GGUF metadata of a small byte-pair vocabulary."""
    tokens = [LETTERS[byte] for byte in range(256) if byte not in missing]
    tokens += [merge.replace(" ", "") for merge in merges or ()]
    if shuffle:  # ids that say nothing about ranks
        tokens.reverse()
    names = SPECIAL + tokens
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": names,
        "token_type": [3] * len(SPECIAL) + [1] * len(tokens),
        "merges": merges and list(merges),
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    kept = {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}
    return {"general.architecture": "llama", "tokenizer.chat_template": TEMPLATE, **kept}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_gguf(toy())


@pytest.fixture(scope="module")
def llama3():
    try:
        return load(assets.fetch(assets.LLAMA3_TOKENIZER))
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Return a small SentencePiece model made as Llama 2's was, and the library's processor."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    words = ["the cat sat on the mat", "a dog ate  the\tcat's hat", "naïve Köln 漢字 12345"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


# What a tokenizer says about itself


def test_fields_of_a_gguf_tokenizer(tokenizer):
    assert tokenizer.vocab_size == 3 + 256 + len(MERGES)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (0, 1, False)
    assert tokenizer.stop_ids == {1}
    assert tokenizer.special == {name: i for i, name in enumerate(SPECIAL)}
    assert (tokenizer.chat_format, tokenizer.default_system) == ("chatml", "Be kind")
    assert repr(tokenizer) == "Tokenizer(266 tokens, chat_format='chatml')"


def test_fields_of_llama3(llama3):
    assert (llama3.vocab_size, llama3.bos_id, llama3.add_bos) == (128_256, 128_000, True)
    assert llama3.stop_ids == {128_001, 128_008, 128_009}
    assert llama3.chat_format == "llama3"
    assert llama3.encode("Hello world", bos=True, eos=True) == [128_000, 9906, 1917, 128_001]


def test_it_cannot_be_changed(tokenizer):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.bos_id = 5
    with pytest.raises(TypeError):
        tokenizer.special["<|new|>"] = 5


# Encoding and decoding


def test_merges_apply_in_order(tokenizer):
    assert list(map(tokenizer.token_text, tokenizer.encode("hello hello hells"))) == [
        *("hello", " hello", " ", "hell", "s")
    ]


def test_ranks_come_from_the_merges_not_from_the_ids(tokenizer):
    shuffled = Tokenizer.from_gguf(toy(shuffle=True))
    for text in ("hello hellos н", "heshell", "lllle"):
        ids, others = tokenizer.encode(text), shuffled.encode(text)
        assert ids != others
        assert [*map(tokenizer.token_bytes, ids)] == [*map(shuffled.token_bytes, others)]


def test_special_text_is_plain_text_unless_allowed(tokenizer):
    text = "he<|im_end|><|im_end|>ing<|im_start|>"
    plain, special = tokenizer.encode(text), tokenizer.encode(text, allow_special=True)
    assert not set(plain) & set(tokenizer.special.values())
    assert special[1:] == [1, 2, 0]  # the longest name wins where two begin alike
    assert tokenizer.decode(plain) == tokenizer.decode(special) == text
    assert tokenizer.decode(special, skip_special=True) == "he"


def test_missing_bytes_are_dropped_and_their_neighbours_merge():
    whole, lacking = Tokenizer.from_gguf(toy()), Tokenizer.from_gguf(toy(missing=(4, 0xF1)))
    names = [lacking.token_text(i) for i in lacking.encode("hello\x04\x04 \U00040000.")]
    assert names == ["hello", " ", r"\x80", r"\x80", r"\x80", "."]
    assert lacking.decode(lacking.encode("hel\x04lo")) == "hello"
    assert whole.decode(whole.encode("hel\x04lo")) == "hel\x04lo"
    assert lacking.encode("\x04") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\ud800",
        "a\udfffb",
        "\ud83d\ude00",
        "\x00" * 100,
        " " * 300_000,
        "\n" * 120_000,
        " \n" * 60_000,
        "a" * 1_000_000,
        "1" * 200_000,
        "\x04" * 60_000,
        "^" * 60_000 + "\n" * 60_000,
    ],
    ids=lambda text: f"{text[:2]!a}x{len(text)}",
)
def test_no_string_breaks_it(tokenizer, llama3, text):
    lacking = Tokenizer.from_gguf(toy(missing=(4,)))
    wanted = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == wanted
    assert llama3.decode(llama3.encode(text)) == wanted
    assert lacking.decode(lacking.encode(text)) == wanted.replace("\x04", "")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text())
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 265)), skip=st.booleans())
def test_stream_equals_decode_and_never_splits_a_character(tokenizer, ids, skip):
    stream = tokenizer.stream(skip_special=skip)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


def test_ids_may_come_from_an_array(tokenizer):
    np, jnp = pytest.importorskip("numpy"), pytest.importorskip("jax.numpy")
    ids = tokenizer.encode("hello <|im_end|>", allow_special=True)
    for array in (np.array(ids), jnp.array(ids)):
        assert tokenizer.decode(array) == "hello <|im_end|>"
        stream = tokenizer.stream()
        assert "".join(stream.push(i) for i in array) == "hello "


def test_stream_holds_back_half_characters(tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode("é👩‍🚀")
    parts = [stream.push(i) for i in [*ids, 1]]
    assert "".join(parts) == "é👩‍🚀" and "�" not in "".join(parts)
    assert [part for part in parts if part] == ["é", "👩", "\u200d", "🚀"]
    assert stream.flush() == ""
    stream.push(ids[0])
    assert stream.flush() == "�"


@pytest.mark.parametrize("token_id", [-1, 266, 10**9, "a", 1.5, None])
def test_an_id_outside_the_vocabulary_is_named(tokenizer, token_id):
    with pytest.raises(InputError, match=r"outside the vocabulary|whole number"):
        tokenizer.token_bytes(token_id)
    with pytest.raises(InputError):
        tokenizer.decode([3, token_id])


def test_only_strings_are_encoded(tokenizer):
    with pytest.raises(InputError, match="bytes"):
        tokenizer.encode(b"hello")


def test_a_begin_token_must_exist():
    with pytest.raises(InputError, match="begin-of-text"):
        Tokenizer.from_gguf(toy(bos_token_id=None)).encode("hello", bos=True)


# SentencePiece, from a file and from GGUF


def as_gguf(processor):
    count = processor.GetPieceSize()
    kinds = ("IsUnknown", 2), ("IsControl", 3), ("IsUnused", 5), ("IsByte", 6)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.IdToPiece(i) for i in range(count)],
        "tokenizer.ggml.scores": [processor.GetScore(i) for i in range(count)],
        "tokenizer.ggml.token_type": [
            next((kind for name, kind in kinds if getattr(processor, name)(i)), 1)
            for i in range(count)
        ],
    }


TEXTS = [
    "",
    "the cat",
    " the  cat",
    "naïve 漢字 ☃ \U0001f600",
    "<s> </s>[INST]",
    "\x00a\n\tb",
    "x" * 90_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:20]))
def test_sentencepiece_ids_are_the_librarys(pieces, text):
    path, processor = pieces
    for tokenizer in (load(path), Tokenizer.from_gguf(as_gguf(processor))):
        ids = tokenizer.encode(text)
        assert ids == processor.EncodeAsIds(text)
        assert tokenizer.decode(ids) == processor.DecodeIds(ids) == text
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_added_sentencepiece_tokens_are_special(pieces):
    metadata = as_gguf(pieces[1])
    for key, value in (("tokens", "<|user|>"), ("scores", 0.0), ("token_type", 4)):
        metadata[f"tokenizer.ggml.{key}"].append(value)
    tokenizer = Tokenizer.from_gguf(metadata)
    added = tokenizer.vocab_size - 1
    assert added not in tokenizer.encode("a <|user|>")
    assert tokenizer.encode("<|user|>", allow_special=True) == [added]


def test_sentencepiece_fields(pieces):
    tokenizer = load(pieces[0].parent)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.stop_ids == {2} and tokenizer.chat_format == "llama2"
    assert tokenizer.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids = tokenizer.encode("the cat", bos=True, eos=True)
    assert ids[0] == 1 and ids[-1] == 2
    assert tokenizer.decode(ids, skip_special=True) == "the cat"
    assert tokenizer.decode(ids) == "<s>the cat</s>"
    stream = tokenizer.stream(continued=True)
    assert "".join(map(stream.push, ids)) == " the cat"
    assert tokenizer.encode("</s>", allow_special=True) == [2]


# Files


def hf_folder(tmp_path, *, config=None, **changes):
    """Write the toy vocabulary as a Hugging Face folder and return it."""
    names = toy()["tokenizer.ggml.tokens"]
    spec = {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "post_processor": None,
        "added_tokens": [
            {"id": i, "content": name, "special": i != 2} for i, name in enumerate(SPECIAL)
        ],
        "model": {
            "type": "BPE",
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": MERGES,
            "ignore_merges": False,
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps({**spec, **changes}), encoding="utf-8")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_a_folder_of_hugging_face(tmp_path, tokenizer):
    config = {
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "chat_template": [
            {"name": "tools", "template": "?"},
            {"name": "default", "template": TEMPLATE},
        ],
    }
    folder = hf_folder(tmp_path, config=config)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    for path in (folder, folder / "tokenizer.json"):
        read = load(path)
        assert read.encode("hello 12  34 hellos") == tokenizer.encode("hello 12  34 hellos")
        assert (read.bos_id, read.eos_id, read.add_bos) == (0, 1, False)
        assert read.stop_ids == {1, 7}
        assert (read.chat_format, read.default_system) == ("chatml", "Be kind")
        # An added token that is not special, such as <think>, is shown when special ones are not.
        assert read.decode([1, 2], skip_special=True) == "<|im_end|>ing"


def test_a_base_model_has_no_chat_format(tmp_path):
    read = load(hf_folder(tmp_path))
    assert (read.bos_id, read.chat_format, read.stop_ids) == (None, None, {1})


def test_the_post_processor_says_whether_a_prompt_begins_with_bos(tmp_path):
    single = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [0]}},
    }
    post = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, single]}
    config = {"bos_token": "<|im_start|>"}
    assert load(hf_folder(tmp_path, config=config, post_processor=post)).add_bos
    config["add_bos_token"] = False
    assert not load(hf_folder(tmp_path, config=config, post_processor=post)).add_bos


@pytest.mark.parametrize(
    ("pre", "count"), [("smollm", 6), ("gpt-2", 4), ("default", 4), ("llama-bpe", 5)]
)
def test_the_file_says_how_words_are_split(pre, count):
    merges = ["1 2", "12 3", "123 4", "Ġ Ġ"]
    names = Tokenizer.from_gguf(toy(pre=pre, merges=merges)).encode("  1234x")
    assert len(names) == count


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, InputError, "lacks tokenizer.ggml.model"),
        ({"tokens": None}, InputError, "lacks tokenizer.ggml.tokens"),
        ({"merges": None}, InputError, "lacks tokenizer.ggml.merges"),
        ({"model": "bert"}, InputError, "of the kind 'bert'"),
        ({"pre": "tekken"}, InputError, "'tekken'"),
        ({"token_type": [1, 2]}, CorruptFileError, "2 types"),
        ({"merges": ["he llo"]}, CorruptFileError, "merge 0"),
        ({"merges": ["he ll", "h e"]}, CorruptFileError, "merge 0"),
    ],
)
def test_a_bad_gguf_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        Tokenizer.from_gguf(toy(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, InputError, "not a byte-level BPE"),
        ({"normalizer": {"type": "NFC"}}, InputError, "not a byte-level BPE"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, InputError, "not a byte-level BPE"),
        ({"model": {"type": "BPE", "vocab": {}}}, CorruptFileError, "incomplete"),
        ({"model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}}, CorruptFileError, "count up"),
    ],
)
def test_a_bad_tokenizer_json_is_named(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        load(hf_folder(tmp_path, **changes))


@pytest.mark.parametrize("regex", ["[", r"\p{L}+"])
def test_a_pattern_that_loses_text_is_refused(tmp_path, regex):
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    steps = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    with pytest.raises(CorruptFileError, match="splitting pattern"):
        load(hf_folder(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))


def test_llama2s_tokenizer_json_gives_way_to_the_model_beside_it(tmp_path, pieces):
    spec = {"pre_tokenizer": None, "normalizer": {"type": "Sequence"}, "model": {"type": "BPE"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"tokenizer\.model beside it"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(pieces[0].read_bytes())
    (tmp_path / "chat_template.jinja").write_text("[INST] {{ messages[0] }} [/INST]")
    read = load(tmp_path)
    assert read.encode("the cat") == pieces[1].EncodeAsIds("the cat")
    assert read.chat_format == "llama2"


def test_files_that_are_not_tokenizers(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="holds no tokenizer"):
        load(tmp_path)
    path = tmp_path / "tokenizer.model"
    first = base64.b64encode(b"a").decode()
    for content, message in [
        (b"", "not a SentencePiece model"),
        (b"\x00\x01junk", "not a SentencePiece model"),
        (f"{first} 0\n!! 1\n".encode(), "line 2"),
        (f"{first} 0\n{first} 2\n".encode(), "count up from 0"),
        (b"GGUF\x03\x00\x00\x00", "not a whole GGUF file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=message):
            load(path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptFileError, match="not valid JSON"):
        load(tmp_path)
