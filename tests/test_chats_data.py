"""Conversations: exactly the answers are learnt, and none of them without its question."""

import dataclasses
import io
import json

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_nb import assets, data, presets
from llama_nb.chat import encode_chat, end_of_turn
from llama_nb.data.chats import marked
from llama_nb.errors import DownloadError, InputError, MissingFileError
from llama_nb.model import Llama, params_of
from llama_nb.tokenizer import Tokenizer, load
from llama_nb.train import Recipe, evaluate, train_step
from llama_nb.train.step import losses
from tests.test_chat import EXPECTED, MARKS, NASTY, SYSTEM, said, toy

# What could merge with what stands around an answer, or be taken for it; the toys know only ASCII.
PARTS = [*(part for part in NASTY if part.isascii()), "\n\n", "  ", "assistant", "</think>"]
TEXT = st.lists(st.sampled_from(PARTS)).map("".join)
PLAIN = Recipe(dtype="float32", keep="everything")


pytestmark = pytest.mark.usefixtures("quiet_datasets")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Return a small tokenizer of every format, and the real ones that can be had."""
    found = {name: toy(name) for name in MARKS}
    found["thinking"] = toy("deepseek", "{{'<｜Assistant｜><think>\\n'}}")
    for name, asset in (("smollm2", assets.SMOLLM2), ("meta", assets.LLAMA3_TOKENIZER)):
        try:
            found[name] = load(assets.fetch(asset))
        except DownloadError:
            continue
    try:
        import sentencepiece
    except ImportError:
        return found
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["[INST] a b  aa [/INST] ab  1 </s> <s>\t."] * 20),
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    found["pieces"] = Tokenizer.from_sentencepiece(path)
    return found


def expected(chat_format, answer):
    """Return the text that has to come from the assistant, by the formats' own templates."""
    return {
        "llama3": f"{answer.strip()}<|eot_id|>",
        "chatml": f"{answer}<|im_end|>",
        "llama2": f" {answer.strip()} </s>",
        "deepseek": f"{answer.split('</think>')[-1]}<｜end▁of▁sentence｜>",
    }[chat_format]


def runs(ids, learn, tokenizer):
    """Return the bytes of every token of every run of learnt tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learn, [0]])))
    pairs = edges.reshape(-1, 2)
    return [[tokenizer.token_bytes(token) for token in ids[a:b]] for a, b in pairs]


NAMES = [*MARKS, "thinking", "smollm2", "meta", "pieces"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts=st.lists(TEXT, min_size=2, max_size=6), system=st.booleans())
def test_exactly_the_answers_are_learnt(tokenizers, name, texts, system):
    if name not in tokenizers:
        pytest.skip(f"{name} can't be had here")
    tokenizer = tokenizers[name]
    messages = [SYSTEM] * system + said(*texts)
    ids, learn = marked(messages, tokenizer)
    last = len(texts) // 2 * 2 + system  # What comes after the last answer is left out.
    assert ids == encode_chat(tokenizer, messages[:last], add_generation_prompt=False)
    found, stop = runs(ids, learn, tokenizer), tokenizer.token_bytes(end_of_turn(tokenizer))
    assert len(found) == len(texts) // 2
    for pieces, answer in zip(found, texts[1::2], strict=True):
        assert pieces[-1] == stop and pieces.count(stop) == 1
        text, whole = b"".join(pieces), expected(tokenizer.chat_format, answer).encode()
        if text != whole:
            # The newline before a chatml answer is in one token with the answer's first blanks.
            assert tokenizer.chat_format == "chatml" and text == b"\n" + whole
            assert pieces[0].startswith(b"\n") and len(pieces[0]) > 1 and answer[0] in " \n"


@pytest.mark.parametrize("chat_format", MARKS)
def test_the_words_of_a_conversation(chat_format):
    tokenizer = toy(chat_format)
    messages = [SYSTEM, *said("Hi", "Yo", "Bye", "So long", "?")]
    ids, learn = marked(messages, tokenizer)

    def show(token):
        return tokenizer.token_bytes(token).decode()

    pairs = zip(map(show, ids), learn, strict=True)
    text = "".join(f"{{{text}}}" if on else text for text, on in pairs).replace("}{", "")
    answer = expected(chat_format, "Yo")
    before, after = EXPECTED[chat_format].split(answer)
    last = expected(chat_format, "So long")
    end = "\n" if chat_format == "chatml" else ""
    assert text == f"{before}{{{answer}}}{after}{{{last}}}{end}"


ROWS = [said(f"Question {i}?", "A" * (i + 1)) for i in range(12)]


def test_where_conversations_come_from(tmp_path):
    page = tmp_path / "chats.jsonl"
    lines = [json.dumps({"messages": messages, "id": 3}) for messages in ROWS]
    page.write_text("\n".join(lines))
    found = [
        data.conversations(ROWS),
        data.conversations(page),
        data.conversations(str(page), streaming=True),
        data.conversations(ROWS, streaming=True),
    ]
    for each in found:
        assert [row["messages"] for row in each] == ROWS
    tables = [
        [
            {name: np.asarray(x).tolist() for name, x in row.items()}
            for row in data.tokenize_chats(each, toy("llama3"))
        ]
        for each in found
    ]
    assert all(table == tables[0] for table in tables)
    assert [row["bytes"] for row in tables[0]] == list(range(1, 13))
    learn, held = data.split(found[0], 0.3)
    assert len(learn) + len(held) == 12


def test_another_format_is_tokenized_anew():
    found = data.conversations(ROWS)
    texts = set()
    for name in MARKS:
        tokenizer = toy(name)
        texts.add(tokenizer.decode(data.tokenize_chats(found, tokenizer)[0]["ids"]))
    thoughtless = dataclasses.replace(toy("chatml"), default_system=None)
    texts.add(thoughtless.decode(data.tokenize_chats(found, thoughtless)[0]["ids"]))
    assert len(texts) == 5


def tokenized(lengths):
    """Return conversations of given lengths; tokens say whose they are, the last three count."""
    return datasets.Dataset.from_list(
        [
            {
                "ids": (1000 * i + np.arange(n)).tolist(),
                "learn": (np.arange(n) >= n - 3).tolist(),
            }
            for i, n in enumerate(lengths)
        ]
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(4, 30), min_size=1, max_size=12), st.integers(0, 9), st.booleans())
def test_no_answer_loses_its_question(sizes, stop, streaming):
    T, sizes = 16, [10, *sizes]
    documents = tokenized(sizes)
    if streaming:
        documents = documents.to_iterable_dataset()
    source = data.Batches(documents, 2, T, buffer=4)
    batches = [next(source) for _ in range(stop + 12)]
    seen = set()
    for batch in batches:
        for row in range(2):
            for segment in range(1, batch.segments[row].max() + 1):
                here = batch.segments[row] == segment
                ids, number = batch.tokens[row][here], int(batch.tokens[row][here][0]) // 1000
                size = min(T, sizes[number] - 1)
                np.testing.assert_array_equal(ids, 1000 * number + np.arange(size))
                counted = batch.weights[row][here] > 0
                places = batch.targets[row][here] % 1000
                np.testing.assert_array_equal(counted, places >= sizes[number] - 3)
                assert counted.any()
                seen.add(number)
            assert (batch.weights[row][batch.segments[row] == 0] == 0).all()
    assert seen == {i for i, n in enumerate(sizes) if n - 3 <= T}
    begun = data.Batches(documents, 2, T, buffer=4)
    for _ in range(stop):
        next(begun)
    again = data.Batches(documents, 2, T, buffer=4, place=begun.place)
    for batch in batches[stop:]:
        for a, b in zip(jax.tree.leaves(next(again)), jax.tree.leaves(batch), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_loss_is_the_mean_over_answers():
    """Of a step, and of a score, against each token's loss in a conversation that is alone."""
    tokenizer = toy("llama3")
    config = dataclasses.replace(presets.get("tiny"), vocab_size=tokenizer.vocab_size)
    params = params_of(Llama(config, rngs=nnx.Rngs(0)))
    rows = data.tokenize_chats(data.conversations(ROWS[:6]), tokenizer)
    nats, count = 0.0, 0
    each = jax.jit(losses, static_argnames=("config", "layout", "recipe"))
    for row in rows:
        ids = np.zeros((1, 65), np.int32)  # What stands behind a text changes nothing in it.
        ids[0, : len(row["ids"])] = row["ids"]
        alone = data.Batch(ids[:, :-1], ids[:, 1:])
        found, _ = each(params, alone, config=config, layout=None, recipe=PLAIN)
        learn = np.flatnonzero(row["learn"]) - 1
        nats, count = nats + float(np.asarray(found)[0][learn].sum()), count + len(learn)
    assert count == sum(range(2, 8))  # Letters, and the ends of their turns.
    score = evaluate(params, config, rows, T=64, batch=2)
    assert score.tokens == count and score.bytes == count - 6
    assert score.loss == pytest.approx(nats / count, rel=1e-5)
    batch = next(data.Batches(rows, 3, 96))
    seen = set(map(tuple, batch.tokens))
    assert len(seen) == 3 and batch.weights.sum() == count  # All six are in it.
    optimizer = optax.sgd(0.0)
    _, _, numbers = train_step(
        jax.tree.map(jnp.array, params),
        optimizer.init(params),
        batch,
        config=config,
        optimizer=optimizer,
        recipe=PLAIN,
    )
    assert float(numbers["loss"]) == pytest.approx(nats / count, rel=1e-5)
    assert float(numbers["tokens"]) == count


def test_scores_cut_no_conversation():
    long, short = np.arange(1, 8), np.arange(1, 6)
    learn = [np.arange(len(ids)) >= 3 for ids in (long, short)]
    rows = list(data.pack(iter([*zip((short, long, short), (learn[1], *learn), strict=True)]), T=8))
    found = [(row.used, row.pieces, row.arrays["weights"].sum()) for row in rows]
    assert found == [(4, 1, 2), (6, 1, 4), (4, 1, 2)]  # None of them goes on in another row.


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (said("Hi"), "conversation 1: no message is the assistant's"),
        (said("Hi", "Yo")[1:], "conversation 1: it begins with the assistant's answer"),
        ([], "conversation 1: no message is the assistant's"),
        (
            [{"role": "bot", "content": "Hi"}, *said("Hi", "Yo")],
            "conversation 1: Message 0 of the conversation has the role 'bot'",
        ),
        ([{"role": "user"}, said("", "Yo")[1]], "conversation 1: Message 0 .* needs a 'content'"),
    ],
)
def test_what_can_not_be_learnt_is_named(messages, message):
    with pytest.raises(InputError, match=message):
        data.tokenize_chats(data.conversations([ROWS[0], messages]), toy("llama3"))


def test_sources_without_conversations(tmp_path):
    with pytest.raises(InputError, match="the list has no conversation to learn from"):
        data.conversations([])
    for bad in (5, [5], [said("Hi", "Yo"), [{"role": "user", "content": 3}]]):
        with pytest.raises(InputError, match=r"write every conversation as a list of \{\"role\""):
            data.conversations(bad)
    with pytest.raises(MissingFileError, match="there is no file"):
        data.conversations(tmp_path / "none.jsonl")
    (tmp_path / "chats.txt").write_text("Hi")
    with pytest.raises(InputError, match=r"chats.txt is none of: .json, .jsonl"):
        data.conversations(tmp_path / "chats.txt")
    (tmp_path / "chats.jsonl").write_text('{"talk": [], "n": 1}')
    with pytest.raises(InputError, match="has no column 'messages'; it has: talk, n"):
        data.conversations(tmp_path / "chats.jsonl")
    assert data.conversations(tmp_path / "chats.jsonl", column="talk")[0] == {"messages": []}
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty.jsonl has nothing in it"):
        data.conversations(tmp_path / "empty.jsonl")
    base = dataclasses.replace(toy("llama3"), chat_format=None)
    with pytest.raises(InputError, match="base model"):
        data.tokenize_chats(data.conversations(ROWS), base)


def test_answers_that_no_row_reaches():
    with pytest.raises(InputError, match="no conversation has an answer within its first 8 tokens"):
        next(data.Batches(tokenized([30, 20]), 1, 8))
