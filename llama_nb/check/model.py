"""Exercises of chapter 06."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig


def residual_block(function: Callable[..., Any]) -> Verdict:
    """Check `f(x, attn_norm, attention, mlp_norm, mlp)`: the wiring of a block, over functions."""

    def cases():
        for D, seed in ((4, 0), (16, 1)):
            rng = np.random.default_rng(seed)
            x, gain_1, gain_2 = rng.normal(size=(3, D))
            matrix_1, matrix_2 = rng.normal(size=(2, D, D))
            stages = (
                lambda h, gain=gain_1: h / np.sqrt((h * h).mean()) * gain,
                lambda h, matrix=matrix_1: h @ matrix,
                lambda h, gain=gain_2: h / np.sqrt((h * h).mean()) * gain,
                lambda h, matrix=matrix_2: np.tanh(h @ matrix),
            )
            middle = x + stages[1](stages[0](x))
            expected = middle + stages[3](stages[2](middle))
            yield f"D={D}", (x.copy(), *stages), expected.tolist()

    return run("residual_block", function, cases())


def param_count(function: Callable[[LlamaConfig], int]) -> Verdict:
    """Check `f(config) -> number of parameters`, a tied head counted once."""

    def cases():
        for name in ("tiny", "smollm2-135m", "llama1-7b", "llama3.1-8b", "llama3.1-405b"):
            config = presets.get(name)
            yield name, (config,), config.param_count()

    return run("param_count", function, cases())


def greedy(function: Callable[..., list[int]]) -> Verdict:
    """Check `f(logits, ids, count, stop) -> ids`: greedy text, cut after the token `stop`."""

    def cases():
        for V, first, count, stop, seed in (
            (11, [3], 5, -1, 0),
            (7, [1, 4, 2], 4, -1, 1),
            (11, [3], 0, -1, 2),
            (5, [0, 2], 30, 4, 3),
        ):
            table = np.random.default_rng(seed).normal(size=(V, V))
            if stop >= 0:
                table[:, stop] = -9.0
                table[int(table[first[-1]].argmax()), stop] = 9.0  # reached at the second token

            def logits(ids, table=table):
                return table[np.asarray(ids)]

            expected = list(first)
            for _ in range(count):
                expected.append(int(table[expected[-1]].argmax()))
                if expected[-1] == stop:
                    break
            yield f"V={V}, ids={first}, count={count}", (logits, first, count, stop), expected

    return run("greedy", function, cases())
