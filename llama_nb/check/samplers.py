"""Exercises of chapter 09."""

from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def nucleus(function: Callable[[np.ndarray, float], np.ndarray]) -> Verdict:
    """Check `f(probabilities, limit) -> booleans`: what top-p keeps, the crossing one too."""

    def cases():
        for V, limit, seed in ((8, 0.5, 0), (50, 0.9, 1), (50, 0.01, 2), (1000, 0.95, 3)):
            weights = np.exp(np.random.default_rng(seed).normal(0, 2, V))
            probabilities = weights / weights.sum()
            likelier = probabilities[None, :] > probabilities[:, None]
            expected = (likelier * probabilities).sum(axis=1) < limit
            yield f"V={V}, limit {limit}", (probabilities, limit), expected.tolist()

    return run("nucleus", function, cases())


def repetition_penalty(function: Callable[[np.ndarray, list[int], float], np.ndarray]) -> Verdict:
    """Check `f(logits, used, penalty) -> logits`, used ones pushed down once, the argument kept."""

    def guarded(logits, used, penalty):
        before = logits.copy()
        result = function(logits, used, penalty)
        if not np.array_equal(before, logits):
            raise ValueError("the logits that were given have been changed; work on a copy.")
        return result

    def cases():
        for V, used, penalty in ((6, [1, 4], 1.3), (40, [3, 3, 3, 9, 0], 2.0), (40, [7], 1.0)):
            logits = np.random.default_rng(V + len(used)).normal(0, 5, V)
            expected = [
                z if i not in used else z / penalty if z > 0 else z * penalty
                for i, z in enumerate(logits)
            ]
            yield f"V={V}, used {used}, penalty {penalty}", (logits, used, penalty), expected

    return run("repetition_penalty", guarded, cases())


def tokens_read(function: Callable[[list[int], list[int], bool], int]) -> Verdict:
    """Check `f(messages, answers, keep) -> tokens` that a chat reads before its answers."""

    def cases():
        for messages, answers in (([10], [5]), ([30, 12, 8], [40, 60, 20]), ([1] * 6, [2] * 6)):
            for keep in (False, True):
                have = total = 0
                text = 0  # so long is the conversation
                for message, answer in zip(messages, answers, strict=True):
                    text += message
                    total += text - (have if keep else 0)
                    text += answer
                    have = text - 1
                about = f"messages {messages}, answers {answers}, keep={keep}"
                yield about, (messages, answers, keep), total

    return run("tokens_read", function, cases())
