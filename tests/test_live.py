"""The picture of a run shows what it says."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from llama_nb.train import live

LEVELS = {"nothing known": 7.6, "unigram": 6.4, "bigram": 4.4}


def drawn(steps):
    """Return axes with the picture of a run, and its losses."""
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    rows = [{"step": n, "loss": 3 + 4.6 * 0.95**n} for n in range(1, steps + 1)]
    rows[-1]["held"] = 3.1
    live.curve(ax, rows, LEVELS)
    figure.canvas.draw()
    plt.close(figure)
    return ax, [row["loss"] for row in rows]


def test_a_short_run_is_drawn_as_it_was():
    ax, losses = drawn(live.SHORT - 1)
    (line,) = [line for line in ax.lines if line.get_label() == "training"]
    assert line.get_ydata() == pytest.approx(losses)
    assert not any("mean" in str(line.get_label()) for line in ax.lines)


def test_a_long_run_has_a_mean():
    ax, losses = drawn(200)
    (line,) = [line for line in ax.lines if line.get_label() == "training, running mean"]
    mean = line.get_ydata()
    assert mean[0] == pytest.approx(losses[0])  # the first ones are not pulled towards zero
    weights = live.SMOOTH ** np.arange(len(losses))[::-1]
    assert mean[-1] == pytest.approx(np.average(losses, weights=weights))


def test_the_legend_covers_nothing():
    ax, _ = drawn(200)
    legend, inside = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert not legend.overlaps(inside)
    whole = ax.figure.bbox
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and legend.y1 <= whole.y1
    assert {text.get_text() for text in ax.get_legend().texts} >= {*LEVELS, "held out"}
