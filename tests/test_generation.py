"""Text level: pieces, batches, stops and chats, on the real model and on a tiny one."""

import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

import llama_nb
from llama_nb import chat as chats
from llama_nb import generation
from llama_nb.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama():
    return llama_nb.load("smollm2-135m", dtype=jnp.float32)


def test_stream_is_generate_in_pieces(llama):
    pieces = list(llama_nb.stream(*llama, "Once upon a time", max_new_tokens=24))
    assert len(pieces) > 10
    assert "".join(pieces) == llama_nb.generate(*llama, "Once upon a time", max_new_tokens=24)


def test_a_ragged_batch_of_texts_equals_each_alone(llama):
    prompts = ["Hello", "The primary colours are", "1, 2, 3, 4,", "def add(a, b):\n    return"]
    together = llama_nb.generate(*llama, prompts, max_new_tokens=16)
    assert together == [llama_nb.generate(*llama, prompt, max_new_tokens=16) for prompt in prompts]


def test_an_answer_ends_at_the_stop_token(llama):
    (done,) = llama_nb.complete(*llama, ["What is the capital of France?"], chat=True)
    assert done.text == "The capital of France is Paris."
    assert done.stopped and done.token_ids[-1] in llama[1].stop_ids
    assert done.new_tokens == len(done.token_ids) == 8 and done.prompt_tokens == 37


def test_rows_of_a_batch_stop_apart(llama):
    questions = ["What is the capital of France?", "Tell me a long story."]
    short, long = llama_nb.complete(*llama, questions, chat=True, max_new_tokens=30)
    assert short.stopped and short.text == "The capital of France is Paris."
    assert not long.stopped and long.new_tokens == 30


def test_an_emoji_is_never_cut(llama):
    pieces = llama_nb.stream(*llama, "Repeat: 🦙🦙🦙🦙 🦙🦙🦙🦙 🦙🦙🦙🦙", max_new_tokens=24)
    text = "".join(pieces)
    assert "🦙" in text and "\ufffd" not in text.rstrip("\ufffd")


@pytest.mark.parametrize("chunk", [5, 32])
def test_chunks_change_no_text(llama, chunk):
    questions = ["What is the capital of France?", "Tell me a long story."]
    options = {"chat": True, "max_new_tokens": 30}
    found = llama_nb.complete(*llama, questions, chunk=chunk, **options)
    wanted = llama_nb.complete(*llama, questions, **options)
    assert [(d.text, d.token_ids, d.stopped) for d in found] == [
        (d.text, d.token_ids, d.stopped) for d in wanted
    ]
    pieces = list(llama_nb.stream(*llama, questions[0], chunk=chunk, **options))
    assert len(pieces) == 7 and "".join(pieces) == "The capital of France is Paris."


def test_a_chat_in_chunks_keeps_its_prefix(llama):
    def talk(chunk):
        chat = llama_nb.Chat(*llama, capacity=512)
        questions = ("My name is Ada. Please say hello.", "What is my name?", "Thanks.")
        budgets = (40, 4, 40)  # The second answer is cut short.
        return [
            ("".join(chat.send(question, max_new_tokens=budget, chunk=chunk)), chat.session.used)
            for question, budget in zip(questions, budgets, strict=True)
        ]

    assert talk(16) == talk(1)


def test_sampling_is_seeded(llama):
    def run(seed):
        return llama_nb.generate(
            *llama,
            "My favourite animal is",
            max_new_tokens=12,
            temperature=1.0,
            top_p=0.9,
            seed=seed,
        )

    assert run(1) == run(1) != run(2)


def test_a_chat_remembers_and_reads_only_what_is_new(llama):
    model, tokenizer = llama
    talk = llama_nb.Chat(model, tokenizer, capacity=512)
    first = "".join(talk.send("My name is Ada. Please say hello.", max_new_tokens=40))
    used = talk.session.used
    again = "".join(talk.send("What is my name?", max_new_tokens=40))
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "user", "assistant"]
    assert talk.messages[1]["content"] == first
    # The whole conversation read anew gives the same answer.
    history = talk.messages[:3]
    assert llama_nb.generate(model, tokenizer, history, max_new_tokens=40) == again
    assert len(chats.encode_chat(tokenizer, history)) > used


def test_a_chat_cut_short_goes_on(llama):
    model, tokenizer = llama
    talk = llama_nb.Chat(model, tokenizer, capacity=512)
    cut = "".join(talk.send("Count from one to twenty in words.", max_new_tokens=5))
    after = "".join(talk.send("What is the capital of France?", max_new_tokens=30))
    history = [
        {"role": "user", "content": "Count from one to twenty in words."},
        {"role": "assistant", "content": cut},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    assert llama_nb.generate(model, tokenizer, history, max_new_tokens=30) == after


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "empty"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("a", {"chunk": 0}, "chunk is 0"),
        ("a", {"max_new_tokens": 8192}, "at most 8191"),
        ("a " * 9000, {}, "context holds 8192"),
        ("a", {"top_p": 0.0}, "top_p"),
        ([{"role": "wizard", "content": "a"}], {}, "wizard"),
        ([], {}, "no prompt"),
    ],
)
def test_bad_input(llama, prompt, options, says):
    with pytest.raises(InputError, match=says):
        llama_nb.generate(*llama, prompt, **options)


def test_stream_refuses_before_the_first_piece(llama):
    with pytest.raises(InputError, match="empty"):
        llama_nb.stream(*llama, "")
    with pytest.raises(TypeError, match="temprature"):
        llama_nb.stream(*llama, "a", temprature=1)


def test_budget():
    generation.check_budget(10, 5, 15)
    with pytest.raises(InputError, match="at most 5"):
        generation.check_budget(10, 6, 15)


def _cli(*arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "llama_nb", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )


def test_command_line_says_paris():
    done = _cli("generate", "--chat", "What is the capital of France?")
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n")


def test_command_line_json():
    done = _cli("generate", "Hello", "--max-new-tokens", "5", "--json")
    got = json.loads(done.stdout)
    assert got["new_tokens"] == len(got["token_ids"]) == 5 and got["prompt_tokens"] == 1
    assert got["prefill_s"] > 0 and got["decode_tokens_per_s"] > 0 and got["text"]
