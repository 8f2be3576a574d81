"""Turns on one machine: work that can go on beside other work, and work that must be alone."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import nbformat

# What reads a clock. Functions that a notebook defines around them count, too.
CLOCKS = ("perf_counter", "time", "best_seconds", "measure", "complete", "Run")


class Turns:
    """A lock for two kinds of work.

    Any number may share the machine. One that must be alone waits until they are done; while it
    waits, none begins.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._sharing = self._waiting = 0
        self._alone = False

    @contextmanager
    def take(self, alone: bool) -> Iterator[float]:
        """Wait for a turn and hold it; yields the seconds waited."""
        started = time.perf_counter()
        with self._changed:
            if alone:
                self._waiting += 1
                self._changed.wait_for(lambda: not (self._sharing or self._alone))
                self._waiting -= 1
                self._alone = True
            else:
                self._changed.wait_for(lambda: not (self._waiting or self._alone))
                self._sharing += 1
        try:
            yield time.perf_counter() - started
        finally:
            with self._changed:
                if alone:
                    self._alone = False
                else:
                    self._sharing -= 1
                self._changed.notify_all()


def that_measure(cells: Sequence[nbformat.NotebookNode]) -> set[int]:
    """Return the indices of code cells that time the machine."""
    names, found = set(CLOCKS), set()
    for index, cell in enumerate(cells):
        if cell.cell_type == "code" and re.search(rf"\b({'|'.join(names)})\(", cell.source):
            found.add(index)
            names.update(re.findall(r"^def (\w+)", cell.source, re.MULTILINE))
    return found
