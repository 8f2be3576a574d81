"""Perplexity against position on one long text, past the context that a model was trained on.

The default model reads 16,384 tokens of Python's own manual, 512 at a time with a KV cache: with
its own rotary frequencies, with Llama 3.1's stretching of them by 2 and by 8, and, to know how hard
each part of the text is, with its own but forgetting all every 2,048 tokens. Exact, and minutes
long; chapter 03 shows the result beside a quick experiment.

    python benchmarks/long_context.py [--save]
"""

import argparse
import dataclasses
import functools
import math
import os
from pydoc_data.topics import topics

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import machine
import numpy as np

import llama_nb
from llama_nb.cache import KVCache
from llama_nb.config import RopeScaling
from llama_nb.model import params_of, with_params

TOKENS, CHUNK, GROWTH, BLOCK = 16_384, 512, 2048, 1024


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/long_context.json")
    options = parser.parse_args()
    model, tokenizer = llama_nb.load("smollm2-135m", dtype=jnp.float32)
    manual = "\n".join(topics[name] for name in sorted(topics))
    ids = np.array([tokenizer.encode(manual)[: TOKENS + 1]], np.int32)
    params, perplexity = params_of(model), {}
    for name, scaling, restart in (
        ("fresh every 2,048", None, 2048),
        ("plain", None, TOKENS),
        ("bands, factor 2", RopeScaling(factor=2.0), TOKENS),
        ("bands, factor 8", RopeScaling(factor=8.0), TOKENS),
    ):
        config = dataclasses.replace(model.config, rope_scaling=scaling, context=131_072)
        losses = read(params, ids, config, restart)
        blocks = losses.reshape(-1, BLOCK).mean(axis=1)
        perplexity[name] = [round(math.exp(loss), 3) for loss in blocks]
        print(f"{name:18}", *(f"{value:7.2f}" for value in perplexity[name]), flush=True)
    if options.save:
        figures = {"tokens_per_block": BLOCK, "trained_context": model.config.context}
        print("kept in", machine.save("long_context", {**figures, "perplexity": perplexity}))


def read(params: dict, ids: np.ndarray, config: llama_nb.LlamaConfig, restart: int) -> np.ndarray:
    """Return the loss at every position, in nats; the cache starts anew every `restart` tokens."""
    losses = []
    for start in range(0, TOKENS, CHUNK):
        if start % restart == 0:
            cache = KVCache.create(config, 1, GROWTH)
        elif start % restart == cache.capacity:
            cache = grow(cache)
        new, cache = step(params, cache, ids[:, start : start + CHUNK + 1], config=config)
        losses.append(np.asarray(new))
    return np.concatenate(losses)


def grow(cache: KVCache) -> KVCache:
    """Return the cache with more slots: in steps, so that few queries pay for empty ones."""
    more = ((0, 0), (0, 0), (0, GROWTH), (0, 0))  # (B, K, S, H)
    keys, values = (tuple(jnp.pad(x, more) for x in xs) for xs in (cache.keys, cache.values))
    return dataclasses.replace(cache, keys=keys, values=values)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def step(
    params: dict, cache: KVCache, ids: jax.Array, *, config: llama_nb.LlamaConfig
) -> tuple[jax.Array, KVCache]:
    """Read one chunk, shape (1, CHUNK + 1): the last token is only a target."""
    model = with_params(config, params)
    hidden, cache = model.hidden(ids[:, :-1], cache)
    logs = jax.nn.log_softmax(model.logits(hidden))
    losses = -jnp.take_along_axis(logs, ids[:, 1:, None], axis=-1)[0, :, 0]
    return losses, dataclasses.replace(cache, length=cache.length + CHUNK)


if __name__ == "__main__":
    main()
