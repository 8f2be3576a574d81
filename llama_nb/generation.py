"""Text in, text out: completions, streams and chats over a `Session`."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from llama_nb import chat as chats
from llama_nb.errors import InputError
from llama_nb.model import Llama
from llama_nb.sampling import Sampling
from llama_nb.session import Session, check_chunk, check_prompts
from llama_nb.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model added to one prompt, and how long it took.

    Attributes
    ----------
    text
        The new text, without special tokens.
    token_ids
        The new tokens, the stop token included when there was one.
    prompt_tokens, new_tokens
        Their numbers.
    prefill_s
        Seconds from the prompt to its logits, compilation included.
    decode_tokens_per_s
        Steps per second after the first token, per sequence; 0 when there was only one.
    stopped
        Whether the model ended by itself.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_tokens_per_s: float
    stopped: bool


def encode_prompt(tokenizer: Tokenizer, prompt: str | Messages, *, chat: bool = False) -> list[int]:
    """Return a prompt's tokens: plain text, one user message (`chat`), or a list of messages.

    Special tokens in the text are text; BOS is added once where the model was trained with it.

    Raises
    ------
    InputError
        When there is no text.
    """
    if not isinstance(prompt, str):
        return chats.encode_chat(tokenizer, prompt)
    if not prompt:
        raise InputError("the prompt is empty; give the model some text to continue.")
    if chat:
        return chats.encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    return tokenizer.encode(prompt, bos=tokenizer.add_bos)


def stream(
    model: Llama,
    tokenizer: Tokenizer,
    prompt: str | Messages,
    *,
    max_new_tokens: int = 128,
    chat: bool = False,
    cache_dtype: Any = None,
    chunk: int = 1,
    **sampling: float | int,
) -> Iterator[str]:
    """Yield the continuation piece by piece, as the model writes it.

    Pieces are whole characters: bytes of one that is not finished wait for the rest.

    Parameters
    ----------
    prompt
        Text, or chat messages (`{"role": ..., "content": ...}`).
    max_new_tokens
        At most so many; a stop token ends earlier.
    chat
        Wrap a plain prompt in the model's chat format.
    cache_dtype
        As in `Session`: "int8" halves the cache's bytes.
    chunk
        Tokens that one dispatch chooses, as in `Session.tokens`: the same text, `chunk` tokens at
        a time. More than 1 pays where the host takes longer to ask than the device to answer.
    **sampling
        `temperature`, `top_k`, `top_p`, `min_p`, `seed`, as in `Sampling`.

    Raises
    ------
    InputError
        Before the first piece: an empty prompt, one that doesn't fit the context together with
        `max_new_tokens`, or a `chunk` or sampling number out of range.
    """
    prompts = [encode_prompt(tokenizer, prompt, chat=chat)]
    settings = Sampling(**sampling)
    run = _Run(model, tokenizer, prompts, max_new_tokens, settings, cache_dtype, chunk)

    def pieces() -> Iterator[str]:
        decoder = tokenizer.stream()
        for (token,) in run.steps():
            if piece := decoder.push(token):
                yield piece
        if rest := decoder.flush():
            yield rest

    return pieces()


def complete(
    model: Llama,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Messages],
    *,
    max_new_tokens: int = 128,
    chat: bool = False,
    cache_dtype: Any = None,
    chunk: int = 1,
    **sampling: float | int,
) -> list[Completion]:
    """Return a `Completion` per prompt; parameters as in `stream`.

    Prompts of different lengths run as one batch, padded on the left; each row's tokens are those
    that it would get alone.
    """
    encoded = [encode_prompt(tokenizer, prompt, chat=chat) for prompt in prompts]
    settings = Sampling(**sampling)
    run = _Run(model, tokenizer, encoded, max_new_tokens, settings, cache_dtype, chunk)
    rows: list[list[int]] = [[] for _ in encoded]
    for tokens in run.steps():
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return [
        Completion(
            text=tokenizer.decode(row, skip_special=True),
            token_ids=row,
            prompt_tokens=len(prompt),
            new_tokens=len(row),
            prefill_s=run.prefill_s,
            decode_tokens_per_s=run.decode_tokens_per_s,
            stopped=bool(row) and row[-1] in tokenizer.stop_ids,
        )
        for prompt, row in zip(encoded, rows, strict=True)
    ]


def generate(
    model: Llama,
    tokenizer: Tokenizer,
    prompt: str | Messages | Sequence[str],
    **options: float | int | bool,
) -> str | list[str]:
    """Return the continuation of a prompt, or of each of a list of prompts.

    The options are `stream`'s. A list of strings is a batch; a list of messages is one chat.

    Examples
    --------
    >>> model, tokenizer = llama_nb.load("smollm2-135m")  # doctest: +SKIP
    >>> llama_nb.generate(model, tokenizer, "What is the capital of France?", chat=True)
    'The capital of France is Paris.'
    """
    batch = not isinstance(prompt, str) and all(isinstance(item, str) for item in prompt)
    done = complete(model, tokenizer, prompt if batch else [prompt], **options)
    texts = [completion.text for completion in done]
    return texts if batch else texts[0]


class _Run:
    """One generation: a session, a budget and the clock."""

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        cache_dtype: Any = None,
        chunk: int = 1,
    ):
        check_chunk(chunk)
        longest = check_prompts(prompts, model.config)
        check_budget(longest, max_new_tokens, model.config.context)
        self.prompts, self.stop_ids, self.chunk = prompts, tokenizer.stop_ids, chunk
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.session = Session(model, longest + max_new_tokens, cache_dtype=cache_dtype)
        self.prefill_s = self.decode_tokens_per_s = 0.0

    def steps(self) -> Iterator[list[int | None]]:
        """Yield one token per prompt at a time; None once a prompt has stopped."""
        start = time.perf_counter()
        logits = jax.block_until_ready(self.session.feed(self.prompts))
        self.prefill_s = time.perf_counter() - start
        running = [True] * len(self.prompts)
        first = 0.0
        chosen = self.session.tokens(
            logits, self.max_new_tokens, self.sampling, chunk=self.chunk, stop_ids=self.stop_ids
        )
        for count, tokens in enumerate(chosen):
            now = time.perf_counter()
            if count:
                self.decode_tokens_per_s = count / (now - first)
            else:
                first = now
            row = [int(t) if alive else None for t, alive in zip(tokens, running, strict=True)]
            running = [t is not None and t not in self.stop_ids for t in row]
            yield row


def check_budget(prompt_tokens: int, max_new_tokens: int, context: int) -> None:
    """Raise `InputError` unless so many new tokens are sensible and fit behind the prompt."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be a whole number above 0.")
    if prompt_tokens + max_new_tokens > context:
        raise InputError(
            f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of "
            f"{context}; shorten the prompt or ask for at most {max(0, context - prompt_tokens)}."
        )


class Chat:
    """A conversation that keeps its cache: each turn reads only what is new.

    Parameters
    ----------
    system
        System message; None is the model's default.
    capacity
        Tokens of the whole conversation; by default 2,048 or the context, whichever is less.
    cache_dtype
        As in `Session`.

    Raises
    ------
    InputError
        From `send`, when the conversation no longer fits.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        capacity: int | None = None,
        cache_dtype: Any = None,
    ):
        self.tokenizer = tokenizer
        capacity = capacity or min(2048, model.config.context)
        self.session = Session(model, capacity, cache_dtype=cache_dtype)
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._unread: list[int] = []

    def send(
        self,
        content: str,
        *,
        max_new_tokens: int = 256,
        chunk: int = 1,
        **sampling: float | int,
    ) -> Iterator[str]:
        """Yield the assistant's answer to a message, piece by piece.

        Iterate to the end: the answer joins the conversation when the iterator is done or closed.
        The options are `stream`'s.
        """
        check_chunk(chunk)
        message = {"role": "user", "content": content}
        settings = Sampling(**sampling)
        if self.session.used == 0:
            ids = chats.encode_chat(self.tokenizer, [*self.messages, message])
        else:
            ids = [*self._unread, *chats.encode_turn(self.tokenizer, content)]
        check_budget(self.session.used + len(ids), max_new_tokens, self.session.limit)
        self.messages.append(message)
        return self._answer(ids, max_new_tokens, settings, chunk)

    def _answer(
        self, ids: list[int], max_new_tokens: int, sampling: Sampling, chunk: int
    ) -> Iterator[str]:
        decoder, answer, pieces = self.tokenizer.stream(), [], []
        stop_ids = self.tokenizer.stop_ids
        logits = self.session.feed([ids])
        try:
            for token in self.session.tokens(
                logits, max_new_tokens, sampling, chunk=chunk, stop_ids=stop_ids
            ):
                answer.append(int(token[0]))
                if answer[-1] in stop_ids:
                    break
                if piece := decoder.push(answer[-1]):
                    pieces.append(piece)
                    yield piece
            if rest := decoder.flush():
                pieces.append(rest)
                yield rest
        finally:
            # The last token was chosen but not read; an answer cut short still gets its stop.
            self._unread = answer[-1:]
            if answer and answer[-1] not in stop_ids:
                self._unread.append(chats.end_of_turn(self.tokenizer))
            self.messages.append({"role": "assistant", "content": "".join(pieces)})
