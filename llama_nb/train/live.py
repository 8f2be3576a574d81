"""The loss of a run, drawn below a notebook's cell while it runs."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from llama_nb import redraw

SMOOTH = 0.9  # How slowly the thick line forgets.
SHORT = 30  # Steps; over fewer the mean would lie far behind a loss that falls.


def watch(
    rows: Iterable[dict[str, float]],
    *,
    levels: Mapping[str, float] | None = None,
    every: float = 2.0,
) -> Iterator[dict[str, float]]:
    """Yield the rows of a run, and redraw its loss as they come.

    Outside of a notebook nothing is drawn.

    Parameters
    ----------
    rows
        A `Run`, or what yields rows with `step` and `loss`, and `held` now and then.
    levels
        Losses to compare with, by name, in nats per token: drawn as horizontal lines.
    every
        Seconds between drawings.
    """
    seen: list[dict[str, float]] = []
    with redraw.Figure(lambda ax: curve(ax, seen, levels or {}), every) as figure:
        for row in rows:
            seen.append(row)
            figure.redraw()
            yield row


def curve(ax: Any, rows: list[dict[str, float]], levels: Mapping[str, float]) -> None:
    """Draw losses over steps: each of them thin, their running mean thick, held-out ones as dots.

    A short run has no mean. The legend lies above the picture, where it covers nothing.

    Parameters
    ----------
    ax
        Matplotlib axes, which are cleared first.
    rows, levels
        As in `watch`.
    """
    ax.clear()
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    if len(losses) < SHORT:
        ax.plot(steps, losses, color="C0", linewidth=1.8, label="training")
    else:
        ax.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8)
        ax.plot(steps, smooth(losses), color="C0", linewidth=1.8, label="training, running mean")
    held = [(row["step"], row["held"]) for row in rows if "held" in row]
    if held:
        ax.plot(*zip(*held, strict=True), "o", color="C1", markersize=5, label="held out")
    for index, (name, level) in enumerate(levels.items()):
        ax.axhline(level, color=f"C{2 + index}", linestyle="--", linewidth=1.2, label=name)
    ax.set(xlabel="step", ylabel="loss [nats per token]")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def smooth(losses: list[float]) -> np.ndarray:
    """Return the running mean, which forgets exponentially and doesn't favour the first."""
    out, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean, weight = SMOOTH * mean + loss, SMOOTH * weight + 1
        out.append(mean / weight)
    return np.asarray(out)
