"""Exercises of chapter 25."""

from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def crossing_bytes(function: Callable[[list[list[int]], int, int], float]) -> Verdict:
    """Check `f(groups, per_host, size) -> bytes` that rings send from one host to another.

    Each group is a ring in the order of its list, the last device next to the first; an all-reduce
    of `size` bytes sends `2 (n - 1) / n * size` from each of its n devices to the next. Device i
    is on host `i // per_host`.
    """

    def cases():
        for groups, per_host, size in (
            ([[0, 1, 2, 3], [4, 5, 6, 7]], 4, 1024),
            ([[0, 1, 2, 3, 4, 5, 6, 7]], 4, 1024),
            ([[0, 4], [1, 5], [2, 6], [3, 7]], 4, 256),
            ([[0, 4, 1, 5], [2, 3, 6, 7]], 4, 64),
            ([[0, 4], [1, 2, 3, 5, 6, 7]], 4, 600),
            ([[0, 1, 2, 3, 4, 5]], 2, 600),
            ([[3]], 4, 8),
        ):
            expected = 0.0
            for ring in groups:
                each = 2 * (len(ring) - 1) / len(ring) * size
                for sender, receiver in zip(ring, np.roll(ring, -1), strict=True):
                    if sender // per_host != receiver // per_host:
                        expected += each
            about = f"{len(groups)} rings like {groups[0]}, {per_host} devices a host, {size} bytes"
            yield about, (groups, per_host, size), expected

    return run("crossing_bytes", function, cases())


def who_waits(function: Callable[[list[list[str]]], list[int]]) -> Verdict:
    """Check `f(programs) -> hosts` that wait for ever, in their order.

    Each host's program is the list of collectives that it enters, one after the other. One is done
    when all hosts are in it; hosts in different ones, or alone, wait.
    """

    def cases():
        for programs in (
            [["sum", "max"], ["sum", "max"]],
            [["sum", "max"], ["sum"]],
            [["sum", "gather"], ["sum", "max"], ["sum"]],
            [["sum", "max"], ["max", "sum"]],
            [[], ["sum"], []],
            [[], []],
            [["sum"] * 3, ["sum"] * 2, ["sum"] * 3],
        ):
            done = 0
            while all(len(p) > done for p in programs) and len({p[done] for p in programs}) == 1:
                done += 1
            waiting = [host for host, p in enumerate(programs) if len(p) > done]
            said = "; ".join(", ".join(p) or "nothing" for p in programs)
            yield f"hosts that enter: {said}", (programs,), np.array(waiting, int).tolist()

    return run("who_waits", function, cases())
