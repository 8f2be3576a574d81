"""The jitted programs of a session: read a prompt, read on, add one token, add many."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.kernels.choice import Choice
from llama_nb.model import Llama, with_params
from llama_nb.sampling import sample
from llama_nb.sharding import Layout


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
    return _step(params, cache, tokens, key, numbers, config, greedy, layout, attention)


def _step(params, cache, tokens, key, numbers, config, greedy, layout, attention):
    model = with_params(config, params, layout, attention or "xla")
    hidden, cache = model.hidden(tokens[:, None], cache)
    cache = dataclasses.replace(cache, length=cache.length + 1)
    key = jax.random.fold_in(key, cache.length)
    return sample(model.logits(hidden)[:, 0], key, numbers, greedy=greedy), cache


@functools.partial(jax.jit, static_argnames=("greedy", "layout"))
def first(
    logits: jax.Array,
    key: jax.Array,
    length: jax.Array,
    numbers: dict[str, jax.Array],
    stop_ids: jax.Array,
    *,
    greedy: bool,
    layout: Layout | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Choose the token that follows what was read.

    Parameters
    ----------
    logits
        Shape (B, V), float32.
    length
        Slots in use, a scalar.
    key, numbers, stop_ids, greedy, layout
        As in `decode_loop`.

    Returns
    -------
    tuple
        Chosen tokens, shape (B,) int32, and which of them end their row, shape (B,) bool.
    """
    tokens = sample(logits, jax.random.fold_in(key, length), numbers, greedy=greedy)
    return _rows(layout, tokens), _rows(layout, _ends(tokens, stop_ids))


@functools.partial(
    jax.jit,
    static_argnames=("chunk", "config", "greedy", "layout", "attention"),
    donate_argnames=("cache",),
)
def decode_loop(
    params: dict[str, Any],
    cache: KVCache,
    tokens: jax.Array,
    done: jax.Array,
    key: jax.Array,
    numbers: dict[str, jax.Array],
    stop_ids: jax.Array,
    count: jax.Array,
    *,
    chunk: int,
    config: LlamaConfig,
    greedy: bool,
    layout: Layout | None = None,
    attention: Choice | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, KVCache]:
    """Add up to `count` tokens to every sequence in one dispatch; stop once all rows have ended.

    The tokens are those of `decode_step`, call after call: ended rows go on until all have.

    Parameters
    ----------
    tokens
        The last chosen tokens, shape (B,).
    done
        Rows that have ended, shape (B,), bool.
    key
        Random key of the whole generation; each step folds its slot into it.
    numbers, greedy
        As for `sampling.sample`.
    stop_ids
        Tokens that end a row, shape (any,), int32.
    count
        Steps at most, a scalar no larger than `chunk`. It is no part of the program, so a last,
        shorter chunk compiles nothing.
    chunk
        Static: columns of the answer.
    layout, attention
        As in `prefill`.

    Returns
    -------
    tuple
        Chosen tokens, shape (B, chunk) int32, of which the first `steps` columns are filled;
        `steps`, a scalar; the last chosen tokens and `done`, for the next chunk; and the cache,
        `steps` longer.
    """
    end = jnp.minimum(count, chunk)

    def goes_on(state):
        steps, _, done, _, _ = state
        return (steps < end) & ~done.all()

    def body(state):
        steps, tokens, done, chosen, cache = state
        # Tied to the step, or the compiler would widen weights of few bits once, ahead of the
        # loop, and every step would read the wide ones.
        weights, tokens = jax.lax.optimization_barrier((params, tokens))
        tokens, cache = _step(
            weights, cache, tokens, key, numbers, config, greedy, layout, attention
        )
        tokens = _rows(layout, tokens)
        chosen = jax.lax.dynamic_update_slice(chosen, tokens[:, None], (0, steps))
        return steps + 1, tokens, _rows(layout, done | _ends(tokens, stop_ids)), chosen, cache

    chosen = _rows(layout, jnp.zeros((tokens.shape[0], chunk), jnp.int32))
    state = (jnp.int32(0), _rows(layout, tokens), _rows(layout, done), chosen, cache)
    steps, tokens, done, chosen, cache = jax.lax.while_loop(goes_on, body, state)
    return chosen, steps, tokens, done, cache


def _ends(tokens: jax.Array, stop_ids: jax.Array) -> jax.Array:
    return (tokens[:, None] == stop_ids).any(axis=1)


def _rows(layout: Layout | None, x: jax.Array) -> jax.Array:
    """Return something per sequence, split as the batch: always alike, so nothing recompiles."""
    return x if layout is None else layout.place(x, "batch", *[None] * (x.ndim - 1))
