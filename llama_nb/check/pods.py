"""Exercises of chapter 24."""

from collections.abc import Callable

import numpy as np

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig


def side_by_side(function: Callable[[list[np.ndarray], int], np.ndarray]) -> Verdict:
    """Check `f(matrices (inputs, outputs each), chips) -> (inputs, sum of outputs)`.

    An even split of the columns gives each chip its share of every matrix, in their order.
    """

    def cases():
        for inputs, widths, chips in (
            (2, (4, 4), 2),
            (3, (8, 8), 8),
            (4, (16, 8, 8), 4),
            (5, (6, 12), 3),
            (2, (3, 5), 1),
        ):
            rng = np.random.default_rng(sum(widths))
            matrices = [rng.integers(-127, 128, (inputs, width)) for width in widths]
            columns = [
                matrix[:, chip * width // chips : (chip + 1) * width // chips]
                for chip in range(chips)
                for matrix, width in zip(matrices, widths, strict=True)
            ]
            about = f"matrices of {' and '.join(map(str, widths))} columns on {chips} chips"
            yield about, (matrices, chips), np.concatenate(columns, axis=1)

    return run("side_by_side", function, cases())


def smallest_slice(function: Callable[[LlamaConfig, int, int, float], int]) -> Verdict:
    """Check `f(config, batch, context, usable) -> chips`: the least power of two that holds all.

    Weights and cache in int8, evenly split; a tenth of the usable bytes stays free.
    """

    def cases():
        for name, batch, context, usable in (
            ("llama3.1-70b", 8, 2048, 15.75 * 2**30),
            ("llama3.1-70b", 136, 8192, 15.75 * 2**30),
            ("llama3.1-405b", 8, 2048, 15.75 * 2**30),
            ("llama3.1-405b", 8, 2048, 94.74 * 2**30),
            ("llama3.1-8b", 1, 8192, 15.75 * 2**30),
            ("llama3.1-8b", 8, 131_072, 31.24 * 2**30),
        ):
            config = presets.get(name)
            held = config.param_count() + batch * context * config.cache_bytes_per_token(1)
            parts = held / (0.9 * usable)
            expected = 1 << max(0, int(np.ceil(np.log2(parts))))
            about = f"{name}, batch {batch}, context {context:,}, {usable / 1e9:.1f} GB a chip"
            yield about, (config, batch, context, usable), expected

    return run("smallest_slice", function, cases())


def best_offer(function: Callable[[np.ndarray], np.ndarray]) -> Verdict:
    """Check `f(logits (n, B, V/n)) -> tokens (B,)`: the argmax over all chips' parts."""

    def cases():
        for n, B, V, what in ((4, 3, 32, "random"), (8, 2, 16, "random"), (4, 2, 16, "tied")):
            logits = np.random.default_rng(V + n).normal(size=(B, V))
            if what == "tied":
                logits[:, [6, 7, 13]] = 5
            parts = logits.reshape(B, n, V // n).swapaxes(0, 1)
            about = f"{what} logits of {n} chips, {B} sequences, V={V}"
            yield about, (parts,), logits.argmax(-1).tolist()

    return run("best_offer", function, cases())
