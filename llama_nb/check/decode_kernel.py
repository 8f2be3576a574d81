"""Exercises of chapter 21."""

from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def blocks_read(function: Callable[[np.ndarray, np.ndarray, int], int]) -> Verdict:
    """Check `f(starts, lengths, block) -> blocks` that hold a slot of any sequence."""

    def cases():
        for starts, lengths, block in (
            ([0, 0, 0], [1, 128, 129], 128),
            ([0, 127, 128], [256, 129, 129], 128),
            ([5, 9, 0], [5, 3, 0], 128),
            ([0, 130, 5, 0, 384], [300, 140, 5, 129, 512], 256),
        ):
            expected = sum(
                len({slot // block for slot in range(*pair)})
                for pair in zip(starts, lengths, strict=True)
            )
            about = f"starts {starts}, lengths {lengths}, blocks of {block}"
            yield about, (np.array(starts), np.array(lengths), block), expected

    return run("blocks_read", function, cases(), atol=0.5)


def online_update(function: Callable[..., tuple]) -> Verdict:
    """Check `f(m, total, y, scores, values) -> (m, total, y)` of one query and one more block."""

    def cases():
        for about, old, new in (
            ("a block whose largest score is new", 0.0, 3.0),
            ("a block below the largest score so far", 3.0, -3.0),
            ("scores near 1,000", 1000.0, 1001.0),
        ):
            rng = np.random.default_rng(21)
            scores = rng.normal(size=24) + np.repeat((old, new), 12)
            values = rng.normal(size=(24, 8))
            states = []
            for end in (12, 24):
                weights = np.exp(scores[:end] - scores[:end].max())
                states.append((scores[:end].max(), weights.sum(), weights @ values[:end]))
            yield about, (*states[0], scores[12:], values[12:]), states[1]

    return run("online_update", function, cases(), atol=1e-9)


def window_block(function: Callable[[int, int, int, int], int]) -> Verdict:
    """Check `f(i, length, window, block)`: the block that step i reads, when a window slides."""

    def cases():
        for length, window, block in (
            (1000, 256, 128),
            (1024, 256, 128),
            (1025, 256, 128),
            (1023, 256, 128),  # begins in the last slot of a block
            (100, 256, 128),
            (640, 1, 128),
        ):
            seen = sorted({slot // block for slot in range(max(length - window, 0), length)})
            for step in range(len(seen) + 2):
                about = f"step {step}, {length} slots, a window of {window}, blocks of {block}"
                expected = seen[min(step, len(seen) - 1)]
                yield about, (step, length, window, block), expected

    return run("window_block", function, cases(), atol=0.5)
