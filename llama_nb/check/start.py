"""Exercises of chapter 00."""

from collections.abc import Callable

import numpy as np

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig


def top_tokens(function: Callable[[np.ndarray, int], tuple]) -> Verdict:
    """Check `f(logits, k) -> (ids, probabilities)`, likeliest first, for logits of shape (V,)."""

    def cases():
        for V, k, seed in ((10, 3, 0), (50, 1, 1), (200, 200, 2)):
            logits = np.random.default_rng(seed).normal(0, 3, V).astype(np.float32)
            weights = np.exp(logits - logits.max(), dtype=np.float64)
            ids = np.argsort(-logits)[:k]
            # Lists, so that any dtype and any kind of array will do.
            expected = ids.tolist(), (weights / weights.sum())[ids].tolist()
            yield f"V={V}, k={k}", (logits, k), expected

    return run("top_tokens", function, cases())


def cache_bytes(function: Callable[[LlamaConfig, int, int], int]) -> Verdict:
    """Check `f(config, tokens, itemsize) -> bytes` of a KV cache of one sequence."""

    def cases():
        for name, tokens, itemsize in (
            ("smollm2-135m", 1, 4),
            ("llama3.1-8b", 8192, 2),
            ("llama1-7b", 2048, 2),
        ):
            config = presets.get(name)
            expected = config.cache_bytes_per_token(itemsize) * tokens
            about = f"{name}, {tokens} tokens of {itemsize} bytes"
            yield about, (config, tokens, itemsize), expected

    return run("cache_bytes", function, cases())
