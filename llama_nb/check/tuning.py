"""Exercises of chapter 14."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig
from llama_nb.lora import LowRank, merged
from llama_nb.model import Llama, params_of
from llama_nb.train import tuning


def answer_mask(function: Callable[[list[int], list[int], int], list[bool]]) -> Verdict:
    """Check `f(ids, opening, end) -> booleans`: the assistant's tokens, their end included."""
    opening, end = [1, 9, 5], 2
    user = [1, 7, 5]

    def cases():
        for about, turns in (
            ("one answer", [(user, [30, 31, 2]), (opening, [40, 41, 42, 2]), (None, [5])]),
            ("two", [(user, [30, 2]), (opening, [40, 2]), (user, [9, 5, 2]), (opening, [41, 2])]),
            ("an answer cut off", [(user, [30, 2]), (opening, [40, 41])]),
            ("the pieces of an opening in a question", [(user, [9, 5, 30, 2]), (opening, [9, 2])]),
            ("an empty answer", [(user, [30, 2]), (opening, [2]), (user, [31, 2])]),
            ("no answer", [(user, [30, 31, 2])]),
        ):
            ids, mask = [], []
            for frame, said in turns:
                ids += [*(frame or []), *said]
                mask += [False] * len(frame or []) + [frame is opening] * len(said)
            yield about, (ids, list(opening), end), mask

    return run("answer_mask", function, cases())


def lora_count(function: Callable[[LlamaConfig, int, list[str]], int]) -> Verdict:
    """Check `f(config, rank, targets) -> count` of trained numbers."""
    wide = dataclasses.replace(presets.get("tiny"), head_dim=32)  # N H is not D.

    def cases():
        for name, config, rank, targets in (
            ("SmolLM2-135M", presets.get("smollm2-135m"), 8, ["q_proj", "v_proj"]),
            ("Llama 3.1 8B", presets.get("llama3.1-8b"), 16, list(tuning.TARGETS)),
            ("heads wider than the model", wide, 4, ["q_proj", "k_proj", "o_proj"]),
            ("Llama 3.2 1B", presets.get("llama3.2-1b"), 1, ["down_proj"]),
        ):
            kind = tuning.Lora(rank=rank, targets=tuple(targets))
            shapes = params_of(Llama(config))
            trained = jax.eval_shape(lambda p, kind=kind: tuning.divide(p, kind)[0], shapes)
            about = f"{name}, rank {rank}, {', '.join(targets)}"
            yield about, (config, rank, list(targets)), tuning.count(trained)

    return run("lora_count", function, cases())


def merge_adapter(function: Callable[..., np.ndarray]) -> Verdict:
    """Check `f(w (N, H, D), a (N, H, r), b (r, D), alpha) -> array like w`."""

    def cases():
        for N, H, D, r, alpha in ((3, 4, 5, 2, 16.0), (2, 8, 16, 1, 1.0), (4, 4, 16, 4, 8.0)):
            rng = np.random.default_rng(N)
            shapes = (N, H, D), (N, H, r), (r, D)
            w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
            whole = np.asarray(merged(LowRank(*map(jax.numpy.asarray, (w, a, b)), alpha / r)))
            yield f"{N} heads of {H}, rank {r}, alpha {alpha:g}", (w, a, b, alpha), whole

    return run("merge_adapter", function, cases(), atol=1e-4)


def best_adapter(function: Callable[[np.ndarray, int], tuple]) -> Verdict:
    """Check `f(change (I, O), rank) -> (a (I, r), b (r, O))`: the nearest product of that rank.

    Many pairs have the same product, so it is the product that is compared.
    """

    def product(change: np.ndarray, rank: int) -> np.ndarray | None:
        found = function(change, rank)
        if found is None:
            return None
        a, b = found
        if np.shape(a) != (change.shape[0], rank) or np.shape(b) != (rank, change.shape[1]):
            raise ValueError(
                f"the shapes are {np.shape(a)} and {np.shape(b)}, not "
                f"{(change.shape[0], rank)} and {(rank, change.shape[1])}"
            )
        return np.asarray(a) @ np.asarray(b)

    def cases():
        for inputs, outputs, rank in ((6, 9, 1), (12, 5, 3), (8, 8, 7)):
            change = np.random.default_rng(inputs).normal(size=(inputs, outputs))
            # By the eigenvectors of its square: another road than the solution's.
            vectors = np.linalg.eigh(change.T @ change)[1][:, -rank:]
            nearest = change @ vectors @ vectors.T
            yield f"a change of {inputs} x {outputs}, rank {rank}", (change, rank), nearest.tolist()

    return run("best_adapter", product, cases(), atol=1e-4)
