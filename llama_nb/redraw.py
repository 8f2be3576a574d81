"""A figure below a notebook's cell that changes while the cell runs."""

import time
from collections.abc import Callable
from typing import Any


class Figure:
    """Drawn again and again while the block runs, and a last time at its end.

    Outside of a notebook nothing is drawn.

    Parameters
    ----------
    draw
        Called with Matplotlib axes; it clears them first.
    every
        Least seconds between drawings.
    """

    def __init__(self, draw: Callable[[Any], None], every: float = 2.0):
        self._draw, self._every = draw, every
        self._figure = self._handle = None
        self._drawn = -every

    def __enter__(self) -> "Figure":
        from IPython import get_ipython

        if getattr(get_ipython(), "kernel", None) is not None:
            import matplotlib.pyplot as plt

            self._figure, self._ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
        return self

    def redraw(self) -> None:
        """Draw what there is now, unless that was done a moment ago."""
        if self._figure is None or time.monotonic() - self._drawn < self._every:
            return
        self._draw(self._ax)
        if self._handle is None:
            from IPython import display

            self._handle = display.display(self._figure, display_id=True)
        else:
            self._handle.update(self._figure)
        self._drawn = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        if self._figure is None:
            return
        import matplotlib.pyplot as plt

        if self._handle is not None:
            self._drawn = -self._every
            self.redraw()
        plt.close(self._figure)
