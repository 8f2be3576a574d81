"""Tokens in, tokens out: prefill once, then one jitted step per token."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.kernels.choice import Choice, choose
from llama_nb.model import Llama, params_of, with_params
from llama_nb.sampling import Sampling, sample
from llama_nb.sharding import Layout

MIN_BUCKET = 16
MIN_CAPACITY = 256


def bucket(size: int, smallest: int) -> int:
    """Return the least power of two, or one and a half of one, that holds `size` and `smallest`.

    Two programs per doubling, and at most a third of the work on padding.
    """
    power = max(smallest, 1 << (size - 1).bit_length())
    return power * 3 // 4 if size <= power * 3 // 4 and smallest < power else power


@functools.partial(jax.jit, static_argnames=("config", "capacity", "dtype", "layout", "attention"))
def prefill(
    params: dict[str, Any],
    tokens: jax.Array,
    starts: jax.Array,
    length: jax.Array,
    *,
    config: LlamaConfig,
    capacity: int,
    dtype: Any,
    layout: Layout | None = None,
    attention: Choice | None = None,
) -> tuple[jax.Array, KVCache]:
    """Run whole prompts through the model and keep their keys and values.

    Parameters
    ----------
    params
        From `model.params_of`.
    tokens
        Shape (B, T): each prompt ends at column `length - 1`; what is left and right is padding.
    starts
        Column of each prompt's first token, shape (B,).
    length
        Columns in use, a scalar.
    config, capacity, dtype
        Static: the model, the cache's slots (at least T) and its dtype.
    layout
        Static: how parameters lie on a mesh; the cache and activations follow.
    attention
        Static: by XLA, which is the default, or by kernels.

    Returns
    -------
    tuple
        Logits of each next token, shape (B, V) float32, and the cache.
    """
    model = with_params(config, params, layout, attention or "xla")
    cache = KVCache.create(config, tokens.shape[0], capacity, dtype, layout)
    cache = dataclasses.replace(cache, starts=starts)
    hidden, cache = model.hidden(tokens, cache, fresh=True, length=length)
    return _next_logits(model, hidden, length), dataclasses.replace(cache, length=length)


@functools.partial(jax.jit, static_argnames=("config", "layout"), donate_argnames=("cache",))
def extend(
    params: dict[str, Any],
    cache: KVCache,
    tokens: jax.Array,
    count: jax.Array,
    *,
    config: LlamaConfig,
    layout: Layout | None = None,
) -> tuple[jax.Array, KVCache]:
    """Add a chunk to a cache: the next turn of a chat, or the next piece of a long prompt.

    Parameters
    ----------
    tokens
        Shape (B, T), padded on the right; the cache has at least T free slots.
    count
        How many of the T are text.

    Returns
    -------
    tuple
        Logits of each next token, shape (B, V) float32, and the cache, `count` longer.
    """
    model = with_params(config, params, layout)
    hidden, cache = model.hidden(tokens, cache)
    cache = dataclasses.replace(cache, length=cache.length + count)
    return _next_logits(model, hidden, count), cache


def _next_logits(model: Llama, hidden: jax.Array, count: jax.Array) -> jax.Array:
    # The head is V x D: worth computing for the one position that is asked about.
    last = jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1, axis=1)
    return model.logits(last)[:, 0]


@functools.partial(
    jax.jit, static_argnames=("config", "greedy", "layout", "attention"), donate_argnames=("cache",)
)
def decode_step(
    params: dict[str, Any],
    cache: KVCache,
    tokens: jax.Array,
    key: jax.Array,
    numbers: dict[str, jax.Array],
    *,
    config: LlamaConfig,
    greedy: bool,
    layout: Layout | None = None,
    attention: Choice | None = None,
) -> tuple[jax.Array, KVCache]:
    """Add one token to every sequence and choose the next.

    Parameters
    ----------
    tokens
        The last chosen tokens, shape (B,).
    key
        Random key of the whole generation; the step folds its slot into it.
    numbers, greedy
        As for `sampling.sample`.
    layout, attention
        As in `prefill`.

    Returns
    -------
    tuple
        Chosen tokens, shape (B,) int32, and the cache, one longer.
    """
    model = with_params(config, params, layout, attention or "xla")
    hidden, cache = model.hidden(tokens[:, None], cache)
    cache = dataclasses.replace(cache, length=cache.length + 1)
    key = jax.random.fold_in(key, cache.length)
    return sample(model.logits(hidden)[:, 0], key, numbers, greedy=greedy), cache


_first = jax.jit(
    lambda logits, key, length, numbers, greedy: sample(
        logits, jax.random.fold_in(key, length), numbers, greedy=greedy
    ),
    static_argnames=("greedy",),
)


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
            size = bucket(longest - done, MIN_BUCKET)
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
        self, logits: jax.Array, count: int, sampling: Sampling | None = None
    ) -> Iterator[np.ndarray]:
        """Yield up to `count` tokens per sequence, one array of shape (B,) int32 at a time.

        The next step is sent off before the last token is fetched, so the device never waits for
        the host. Stop iterating at any time; the session has then read every token yielded but
        the last.
        """
        sampling = sampling or Sampling()
        if self.used + count > self.limit:
            raise InputError(
                f"{count} new tokens do not fit: {self.used} of this session's {self.limit} "
                "are used; ask for fewer or start a new session."
            )
        key, numbers = jax.random.key(sampling.seed), sampling.numbers()
        token = _first(logits, key, np.int32(self.used), numbers, greedy=sampling.greedy)
        base = self.used

        def step(token: jax.Array) -> jax.Array:
            token, self.cache = decode_step(
                self.params,
                self.cache,
                token,
                key,
                numbers,
                config=self.config,
                greedy=sampling.greedy,
                layout=self.layout,
                attention=self.attention,
            )
            return token

        try:
            yield _fetch(token)  # Shown before the step is compiled, where it is new.
            token = step(token) if count > 1 else token
            for index in range(1, count):
                ahead = step(token) if index + 1 < count else None
                self.used = base + index
                yield _fetch(token)
                token = ahead
        finally:
            # Whoever stops early leaves a step behind that read a token nobody saw: forget it.
            self.cache = dataclasses.replace(self.cache, length=jnp.int32(self.used))


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
