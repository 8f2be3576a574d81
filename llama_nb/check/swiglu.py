"""Exercises of chapter 05."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig, llama_ffn_dim


def ffn_dim(function: Callable[[int, int, float | None], int]) -> Verdict:
    """Check `f(embed_dim, multiple_of, multiplier) -> F`, as Meta's `params.json` implies it."""

    def cases():
        for D, multiple, multiplier in (
            (4096, 256, None),
            (5120, 256, None),
            (4096, 1024, 1.3),
            (8192, 4096, 1.3),
            (16_384, 4096, 1.2),
            (2048, 256, 1.5),
            (3072, 256, 1.0),
            (96, 256, None),  # exactly a multiple already: nothing to round
            (100, 7, 1.1),
        ):
            about = f"D={D}, multiple_of={multiple}, multiplier={multiplier}"
            yield about, (D, multiple, multiplier), llama_ffn_dim(D, multiple, multiplier)

    return run("ffn_dim", function, cases())


def swiglu_gradient(function: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]) -> Verdict:
    """Check `f(gate, up) -> (dy/dgate, dy/dup)` for `y = silu(gate) * up`, elementwise."""

    def y(gate, up):
        return gate / (1 + np.exp(-gate)) * up

    def cases():
        for shape, seed in (((5,), 0), ((3, 4), 1)):
            rng = np.random.default_rng(seed)
            gate, up = rng.normal(0, 2, (2, *shape))
            step = 1e-6  # central differences: no formula to copy a mistake from
            by_gate = (y(gate + step, up) - y(gate - step, up)) / (2 * step)
            by_up = (y(gate, up + step) - y(gate, up - step)) / (2 * step)
            yield f"shape {shape}", (gate, up), (by_gate.tolist(), by_up.tolist())

    return run("swiglu_gradient", function, cases())


def score_share(function: Callable[[LlamaConfig, int], float]) -> Verdict:
    """Check `f(config, context)`: the share of scores and weighted sum in one token's FLOPs."""

    def cases():
        for name, context in (
            ("smollm2-135m", 512),
            ("llama2-7b", 4096),
            ("llama3.1-8b", 131_072),
            ("llama3.1-405b", 8192),
        ):
            config = presets.get(name)
            share = 1 - config.flops_per_token(0) / config.flops_per_token(context)
            yield f"{name}, {context} positions", (config, context), share

    return run("score_share", function, cases())
