"""Tokens in, tokens out: prefill once, then one dispatch per token, or per chunk of them."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.kernels.choice import choose
from llama_nb.model import Llama, params_of
from llama_nb.sampling import Sampling
from llama_nb.steps import decode_loop, decode_step, extend, first, prefill

MIN_BUCKET = 16
MIN_CAPACITY = 256


def bucket(size: int, smallest: int) -> int:
    """Return the least power of two, or one and a half of one, that holds `size` and `smallest`.

    Two programs per doubling, and at most a third of the work on padding.
    """
    power = max(smallest, 1 << (size - 1).bit_length())
    return power * 3 // 4 if size <= power * 3 // 4 and smallest < power else power


def _fetch(tokens: jax.Array) -> np.ndarray:
    """Return chosen tokens; where hosts split the batch, each gets the others' too."""
    if not (tokens.is_fully_addressable or tokens.is_fully_replicated):
        tokens = jax.device_put(tokens, NamedSharding(tokens.sharding.mesh, PartitionSpec()))
    return np.asarray(tokens)


class Session:
    """A model and the past it has read: what a chat keeps between turns.

    Parameters
    ----------
    model
        Its parameters are used as they are now; later changes to the model are not seen.
    capacity
        Most tokens that the session will hold, prompts and answers together; by default the
        model's context. Memory is taken for it at once.
    cache_dtype
        Of keys and values; by default that of the activations. "int8" keeps a scale for each.

    Raises
    ------
    InputError
        When `capacity` is not between 1 and the model's context.
    """

    def __init__(self, model: Llama, capacity: int | None = None, *, cache_dtype: Any = None):
        self.config, self.layout = model.config, model.layout
        self.params = params_of(model)
        norm = self.params["norm"]  # Parameters may be NumPy's; then they go where JAX puts them.
        devices = norm.devices() if isinstance(norm, jax.Array) else jax.devices()
        self.attention = choose(model.attention_impl, next(iter(devices)))
        self.limit = self.config.context if capacity is None else capacity
        if not 1 <= self.limit <= self.config.context:
            raise InputError(
                f"a session of {self.limit} tokens was asked for; "
                f"this model's context allows 1 to {self.config.context}."
            )
        self.dtype = self.params["norm"].dtype if cache_dtype is None else jnp.dtype(cache_dtype)
        self.cache: KVCache | None = None
        self.used = 0

    @property
    def slots(self) -> int:
        """Slots of the cache: the limit rounded up, so that few programs serve all lengths."""
        return bucket(self.limit, MIN_CAPACITY)

    def feed(self, prompts: Sequence[Sequence[int]]) -> jax.Array:
        """Read tokens and return the logits of what follows, shape (B, V) float32.

        The first call may bring several prompts of different lengths; later ones continue all of
        them by the same number of tokens.

        Raises
        ------
        InputError
            When a prompt is empty, has an id outside the vocabulary or doesn't fit.
        """
        longest = check_prompts(prompts, self.config)
        if self.used + longest > self.limit:
            raise InputError(
                f"{longest} tokens do not fit: {self.used} of this session's {self.limit} are used."
            )
        if self.cache is None:
            return self._prefill(prompts, longest)
        if len({len(prompt) for prompt in prompts}) > 1:
            raise InputError("a running batch continues by the same number of tokens in each row.")
        if len(prompts) != self.cache.starts.shape[0]:
            raise InputError(
                f"{len(prompts)} continuations were given for a batch of "
                f"{self.cache.starts.shape[0]} sequences."
            )
        # The padded chunk must fit too; near the end, smaller and smaller buckets do.
        logits, done = None, 0
        while done < longest:
            room = self.slots - self.used
            # One token at a time is how a reader's own loop decodes: no padding for it.
            size = 1 if longest == 1 else bucket(longest - done, MIN_BUCKET)
            if size > room:
                size = 1 << (room.bit_length() - 1)
            count = min(size, longest - done)
            tokens = np.zeros((len(prompts), size), np.int32)
            tokens[:, :count] = [prompt[done : done + count] for prompt in prompts]
            logits, self.cache = extend(
                self.params,
                self.cache,
                tokens,
                np.int32(count),
                config=self.config,
                layout=self.layout,
            )
            self.used += count
            done += count
        return logits

    def _prefill(self, prompts: Sequence[Sequence[int]], longest: int) -> jax.Array:
        tokens = np.zeros((len(prompts), bucket(longest, MIN_BUCKET)), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[longest - len(prompt) : longest] = prompt
        starts = np.array([longest - len(prompt) for prompt in prompts], np.int32)
        logits, self.cache = prefill(
            self.params,
            tokens,
            starts,
            np.int32(longest),
            config=self.config,
            capacity=self.slots,
            dtype=self.dtype,
            layout=self.layout,
            attention=self.attention,
        )
        self.used = longest
        return logits

    def tokens(
        self,
        logits: jax.Array,
        count: int,
        sampling: Sampling | None = None,
        *,
        chunk: int = 1,
        stop_ids: Collection[int] = (),
    ) -> Iterator[np.ndarray]:
        """Yield up to `count` tokens per sequence, one array of shape (B,) int32 at a time.

        What comes next is sent off before the last tokens are fetched, so the device never waits
        for the host. Stop iterating at any time; the session has then read every token yielded but
        the last.

        Parameters
        ----------
        logits
            Of what follows, from `feed`.
        chunk
            Tokens per dispatch. With 1 each is here as soon as it is chosen. More of them are
            chosen in a loop on the device and arrive together; they are the same tokens.
        stop_ids
            Tokens that end a sequence. The last array is the one with which all have ended; until
            then rows that have ended go on.

        Raises
        ------
        InputError
            When the tokens don't fit, or `chunk` is no whole number above 0.
        """
        sampling = sampling or Sampling()
        check_chunk(chunk)
        if self.used + count > self.limit:
            raise InputError(
                f"{count} new tokens do not fit: {self.used} of this session's {self.limit} "
                "are used; ask for fewer or start a new session."
            )
        key, numbers = jax.random.key(sampling.seed), sampling.numbers()
        stops, base = np.array(sorted(stop_ids), np.int32), self.used
        token, done = first(
            logits,
            key,
            np.int32(base),
            numbers,
            stops,
            greedy=sampling.greedy,
            layout=self.layout,
        )
        options = {
            "config": self.config,
            "greedy": sampling.greedy,
            "layout": self.layout,
            "attention": self.attention,
        }
        if chunk == 1:
            rows = self._one_by_one(token, count, (key, numbers), options)
        else:
            arguments = (key, numbers, stops)
            rows = self._chunks(token, done, count, arguments, {"chunk": chunk, **options})
        try:
            ended = False
            for index, row in enumerate(rows):
                self.used = base + index
                yield row
                ended = ended | np.isin(row, stops)
                if ended.all():
                    return
        finally:
            # Whoever stops early leaves steps behind that read tokens nobody saw: forget them.
            length = jnp.minimum(self.cache.length, np.int32(self.used))
            self.cache = dataclasses.replace(self.cache, length=length)

    def _one_by_one(
        self, token: jax.Array, count: int, arguments: tuple, options: dict[str, Any]
    ) -> Iterator[np.ndarray]:
        def step(token: jax.Array) -> jax.Array:
            token, self.cache = decode_step(self.params, self.cache, token, *arguments, **options)
            return token

        yield _fetch(token)  # Shown before the step is compiled, where it is new.
        token = step(token) if count > 1 else token
        for index in range(1, count):
            ahead = step(token) if index + 1 < count else None
            yield _fetch(token)
            token = ahead

    def _chunks(
        self,
        token: jax.Array,
        done: jax.Array,
        count: int,
        arguments: tuple,
        options: dict[str, Any],
    ) -> Iterator[np.ndarray]:
        chunk = options["chunk"]

        def send(left: int) -> tuple[jax.Array, jax.Array]:
            nonlocal token, done
            size = np.int32(min(chunk, left))
            chosen, steps, token, done, self.cache = decode_loop(
                self.params, self.cache, token, done, *arguments, size, **options
            )
            return chosen, steps

        yield _fetch(token)
        left = count - 1
        sent = send(left) if left > 0 else None
        while sent:
            left -= chunk
            # Where all rows end in the chunk before, this one takes no step.
            ahead = send(left) if left > 0 else None
            chosen, steps = _fetch(sent[0]), int(sent[1])
            yield from chosen[:, :steps].T
            sent = ahead


def check_chunk(chunk: int) -> None:
    """Raise `InputError` unless `chunk` is a number of tokens."""
    if not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be a whole number above 0.")


def check_prompts(prompts: Sequence[Sequence[int]], config: LlamaConfig) -> int:
    """Return the longest prompt's length, or raise `InputError` for what no model can read."""
    if not prompts:
        raise InputError("no prompt was given; pass at least one.")
    for index, prompt in enumerate(prompts):
        which = f"prompt {index}" if len(prompts) > 1 else "the prompt"
        if len(prompt) == 0:
            raise InputError(f"{which} is empty; give the model at least one token to start from.")
        bad = next((t for t in prompt if not 0 <= t < config.vocab_size), None)
        if bad is not None:
            raise InputError(
                f"{which} holds token id {bad}; this model's vocabulary is 0 to "
                f"{config.vocab_size - 1}."
            )
        if len(prompt) > config.context:
            raise InputError(
                f"{which} has {len(prompt)} tokens; this model's context holds {config.context}."
            )
    return max(len(prompt) for prompt in prompts)
