"""Conversations as token ids, in the format that each chat model was trained on.

What a message says is never obeyed: `<|eot_id|>` typed by a user stays text. Only the frame around
it is made of special tokens, so nobody can end their turn early and speak for the assistant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from llama_nb.errors import InputError
from llama_nb.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

_Turn = tuple[str, str]

_END_OF_TURN = {
    "llama3": "<|eot_id|>",
    "chatml": "<|im_end|>",
    "llama2": "</s>",
    "deepseek": "<｜end▁of▁sentence｜>",
}


def encode_chat(
    tokenizer: Tokenizer,
    messages: Iterable[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Return the token ids of a conversation.

    Parameters
    ----------
    tokenizer : Tokenizer
        Its `chat_format` says how the conversation is written.
    messages : iterable of mapping
        `{"role": "system" | "user" | "assistant", "content": text}`, first said first.
    add_generation_prompt : bool
        Whether to open the assistant's turn, for the model to continue.

    Returns
    -------
    list of int
        Begin token included, where the format has one.

    Raises
    ------
    InputError
        When a message is malformed, the order is one the format has no words for, or the tokenizer
        belongs to a base model.

    Notes
    -----
    'llama3' is Meta's `ChatFormat` (`llama-models`, `models/llama3/chat_format.py`), with messages
    stripped as in the published templates, but without the dates that the template of Llama 3.1
    puts before the system prompt. 'chatml' is SmolLM2's template, 'llama2' the `[INST]` format of
    Meta's `llama/generation.py`, 'deepseek' the template of DeepSeek-R1-Distill-Llama-8B, which
    leaves out what an earlier answer thought (all before `</think>`).
    """
    encode, _ = _format(tokenizer)
    turns = [_check(message, place) for place, message in enumerate(messages)]
    if not turns:
        raise InputError("The conversation is empty; give at least one message.")
    return encode(tokenizer, turns, add_generation_prompt)


def encode_turn(tokenizer: Tokenizer, content: str) -> list[int]:
    """Return what to append to a conversation, after a stop token, for the user's next message.

    With the tokens so far in a KV cache, only these are left to read: they are exactly what
    `encode_chat` of the whole conversation has after the assistant's last stop token, up to and
    including the opening of the next answer.

    Parameters
    ----------
    tokenizer : Tokenizer
        Its `chat_format` says how the conversation is written.
    content : str
        The user's message.

    Raises
    ------
    InputError
        As `encode_chat`.

    Notes
    -----
    The cache keeps the answer as the model wrote it. Encoding the whole conversation anew can
    differ there: text may be split into other tokens than the model chose, and 'deepseek' drops
    thoughts.
    """
    _, turn = _format(tokenizer)
    _, content = _check({"role": "user", "content": content}, 0)
    return turn(tokenizer, content)


def end_of_turn(tokenizer: Tokenizer) -> int:
    """Return the token that ends an answer: what to append when the model was cut short.

    Raises
    ------
    InputError
        When the tokenizer belongs to a base model, or lacks the token.
    """
    _format(tokenizer)
    return _special(tokenizer, _END_OF_TURN[tokenizer.chat_format])


def _check(message: Mapping[str, str], place: int) -> _Turn:
    where = f"Message {place} of the conversation"
    if not isinstance(message, Mapping):
        raise InputError(f'{where} is {message!r}; write it as {{"role": ..., "content": ...}}.')
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise InputError(f"{where} needs a {key!r} that is text, not {message.get(key)!r}.")
    if message["role"] not in ROLES:
        raise InputError(f"{where} has the role {message['role']!r}; use {', '.join(ROLES)}.")
    return message["role"], message["content"]


def _special(tokenizer: Tokenizer, name: str) -> int:
    try:
        return tokenizer.special[name]
    except KeyError:
        raise InputError(
            f"{tokenizer!r} has no token {name}, so it cannot write a conversation in that format."
        ) from None


def _leading_system(turns: Sequence[_Turn], chat_format: str) -> tuple[str | None, list[_Turn]]:
    """Return the system prompt and the rest, for formats that have one place for it."""
    system, rest = None, list(turns)
    if rest[0][0] == "system":
        system = rest.pop(0)[1]
    if any(role == "system" for role, _ in rest):
        raise InputError(
            f"The format {chat_format!r} takes one system message, at the start of a conversation."
        )
    return system, rest


def _llama3_header(tokenizer: Tokenizer, role: str) -> list[int]:
    opening = _special(tokenizer, "<|start_header_id|>")
    closing = _special(tokenizer, "<|end_header_id|>")
    return [opening, *tokenizer.encode(role), closing, *tokenizer.encode("\n\n")]


def _llama3_message(tokenizer: Tokenizer, role: str, content: str) -> list[int]:
    text = tokenizer.encode(content.strip())
    return [*_llama3_header(tokenizer, role), *text, _special(tokenizer, "<|eot_id|>")]


def _llama3(tokenizer: Tokenizer, turns: Sequence[_Turn], generate: bool) -> list[int]:
    ids = [_special(tokenizer, "<|begin_of_text|>")]
    for role, content in turns:
        ids += _llama3_message(tokenizer, role, content)
    return ids + (_llama3_header(tokenizer, "assistant") if generate else [])


def _llama3_turn(tokenizer: Tokenizer, content: str) -> list[int]:
    message = _llama3_message(tokenizer, "user", content)
    return message + _llama3_header(tokenizer, "assistant")


def _chatml_message(tokenizer: Tokenizer, role: str, content: str) -> list[int]:
    # The template is one text cut at special tokens, so role and content are encoded together:
    # a content that starts with a space or newline merges with the newline before it.
    text = tokenizer.encode(f"{role}\n{content}")
    end = [_special(tokenizer, "<|im_end|>"), *tokenizer.encode("\n")]
    return [_special(tokenizer, "<|im_start|>"), *text, *end]


def _chatml_opening(tokenizer: Tokenizer) -> list[int]:
    return [_special(tokenizer, "<|im_start|>"), *tokenizer.encode("assistant\n")]


def _chatml(tokenizer: Tokenizer, turns: Sequence[_Turn], generate: bool) -> list[int]:
    if tokenizer.default_system is not None and turns[0][0] != "system":
        turns = [("system", tokenizer.default_system), *turns]
    ids = []
    for role, content in turns:
        ids += _chatml_message(tokenizer, role, content)
    return ids + (_chatml_opening(tokenizer) if generate else [])


def _chatml_turn(tokenizer: Tokenizer, content: str) -> list[int]:
    # The model stops at <|im_end|>; the newline that follows it is still to be read.
    message = _chatml_message(tokenizer, "user", content)
    return [*tokenizer.encode("\n"), *message, *_chatml_opening(tokenizer)]


def _llama2_turn(tokenizer: Tokenizer, content: str) -> list[int]:
    return tokenizer.encode(f"[INST] {content.strip()} [/INST]", bos=True)


def _llama2(tokenizer: Tokenizer, turns: Sequence[_Turn], generate: bool) -> list[int]:
    system, rest = _leading_system(turns, "llama2")
    expected = ["user", "assistant"] * len(rest)
    if [role for role, _ in rest] != expected[: len(rest)] or len(rest) % 2 != generate:
        last = "user's" if generate else "assistant's"
        raise InputError(
            "In the format 'llama2' user and assistant take turns, the user first, and the last "
            f"message is the {last}."
        )
    questions, answers = (
        [content for _, content in rest[::2]],
        [content for _, content in rest[1::2]],
    )
    if system is not None:
        questions[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{questions[0]}"
    ids = []
    for question, answer in zip(questions, answers, strict=False):
        text = f"[INST] {question.strip()} [/INST] {answer.strip()} "
        ids += tokenizer.encode(text, bos=True, eos=True)
    return ids + (_llama2_turn(tokenizer, questions[-1]) if generate else [])


def _deepseek_opening(tokenizer: Tokenizer) -> list[int]:
    opening = [_special(tokenizer, "<｜Assistant｜>")]
    if tokenizer.opens_thought:
        opening += [_special(tokenizer, "<think>"), *tokenizer.encode("\n")]
    return opening


def _deepseek(tokenizer: Tokenizer, turns: Sequence[_Turn], generate: bool) -> list[int]:
    system, rest = _leading_system(turns, "deepseek")
    ids = tokenizer.encode(system or "", bos=True)
    for role, content in rest:
        if role == "user":
            ids += [_special(tokenizer, "<｜User｜>"), *tokenizer.encode(content)]
        else:
            answer = tokenizer.encode(content.split("</think>")[-1], eos=True)
            ids += [_special(tokenizer, "<｜Assistant｜>"), *answer]
    return ids + (_deepseek_opening(tokenizer) if generate else [])


def _deepseek_turn(tokenizer: Tokenizer, content: str) -> list[int]:
    question = [_special(tokenizer, "<｜User｜>"), *tokenizer.encode(content)]
    return question + _deepseek_opening(tokenizer)


_FORMATS: dict[str, tuple[Callable, Callable]] = {
    "llama3": (_llama3, _llama3_turn),
    "chatml": (_chatml, _chatml_turn),
    "llama2": (_llama2, _llama2_turn),
    "deepseek": (_deepseek, _deepseek_turn),
}


def _format(tokenizer: Tokenizer) -> tuple[Callable, Callable]:
    name = tokenizer.chat_format
    if name is None:
        raise InputError(
            "This is a base model, which was not trained on conversations; give it plain text."
        )
    if name not in _FORMATS:
        raise InputError(f"Unknown chat format {name!r}; there are {', '.join(_FORMATS)}.")
    return _FORMATS[name]
