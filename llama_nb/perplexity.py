"""How well a model predicts a text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.loss import cross_entropy
from llama_nb.model import Llama, params_of, with_params


@functools.partial(jax.jit, static_argnames=("config", "cache_dtype"))
def _losses(
    params: dict[str, Any], tokens: jax.Array, *, config: LlamaConfig, cache_dtype: Any
) -> jax.Array:
    model = with_params(config, params)
    cache = None
    if cache_dtype is not None:
        cache = KVCache.create(config, *tokens.shape, cache_dtype)
    hidden, _ = model.hidden(tokens, cache)
    return cross_entropy(model.logits(hidden[:, :-1]), tokens[:, 1:])[0]


def losses(
    model: Llama,
    tokens: Sequence[int],
    *,
    window: int = 512,
    cache_dtype: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return how surprised the model is by each token: `-log p(token | those before it)`.

    The text is cut into windows that don't see each other; the first token of each is given. What
    is left over at the end is not read.

    Parameters
    ----------
    tokens
        The text; at least `window` of them.
    window
        Tokens per window, at most the model's context.
    cache_dtype
        None attends to keys and values as they are computed. A dtype sends them through a cache of
        that dtype first, as decoding does: what "int8" costs is the difference.
    progress
        Called with tokens done and tokens in all.

    Returns
    -------
    numpy.ndarray
        Shape (windows, window - 1), float32, in nats.

    Raises
    ------
    InputError
        For a window that the model or the text can't fill.
    """
    config = model.config
    if not 2 <= window <= config.context:
        raise InputError(f"window is {window}; this model takes 2 to {config.context} tokens.")
    rows = len(tokens) // window
    if rows == 0:
        raise InputError(f"the text has {len(tokens)} tokens, less than a window of {window}.")
    table = np.asarray(tokens[: rows * window], np.int32).reshape(rows, 1, window)
    dtype = None if cache_dtype is None else jnp.dtype(cache_dtype)
    params, found = params_of(model), []
    for row in table:
        found.append(np.asarray(_losses(params, row, config=config, cache_dtype=dtype))[0])
        if progress is not None:
            progress(len(found) * window, rows * window)
    return np.stack(found)


def perplexity(model: Llama, tokens: Sequence[int], **options: Any) -> float:
    """Return `exp` of the mean loss: between how many tokens the model hesitates, on average.

    Options as in `losses`.
    """
    return float(np.exp(losses(model, tokens, **options).mean(dtype=np.float64)))
