"""One line on standard error that says how far long work is."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Give a function `show(done, total, note="")` that redraws one line while the block runs.

    Without a terminal the title and, at the end, the seconds are printed once.

    Parameters
    ----------
    title
        What goes on.
    total
        Of any unit.
    quiet
        Show nothing.
    """
    start, terminal = time.perf_counter(), sys.stderr.isatty()

    def show(done: int, total: int, note: str = "") -> None:
        if quiet or not terminal:
            return
        share, seconds = done / max(total, 1), time.perf_counter() - start
        marks = ("#" * round(20 * share)).ljust(20, ".")
        left = f"{seconds / share - seconds:.0f} s left" if share > 0.02 else ""
        line = f"\r{title} [{marks}] {share:4.0%} {left:10} {note}\x1b[K"
        print(line, end="", file=sys.stderr, flush=True)

    if not quiet and not terminal:
        print(f"{title} ...", file=sys.stderr, flush=True)
    end = "stopped after"
    try:
        yield show
        end = "took"
    finally:
        if not quiet:
            line = f"{title} {end} {time.perf_counter() - start:.1f} s"
            print(f"\r{line:79}" if terminal else line, file=sys.stderr, flush=True)
