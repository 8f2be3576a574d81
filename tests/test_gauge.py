"""Memory is counted while weights load, and the picture shows what was counted."""

import time

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from llama_nb import gauge, loading, presets, redraw
from llama_nb.checkpoint.noise import Noise


def test_the_peak_is_seen_between_two_calls():
    with gauge.Gauge(kept=1e8) as seen:
        time.sleep(3 * gauge.PERIOD)
        block = np.ones(25_000_000, np.float32)  # 100 MB, written to
        time.sleep(5 * gauge.PERIOD)
        del block
        seen(1, 1)
    assert 0.9e8 < seen.peak < 2e8
    assert seen.seconds == seen.looks[-1].seconds > seen.looks[1].seconds >= 0


def test_loading_is_watched_to_its_end():
    with gauge.Gauge(kept=1e6) as seen:
        loading.load_weights(Noise(presets.get("tiny")), watch=seen)
    shares = [look.done for look in seen.looks]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)


@pytest.mark.parametrize("devices", [None, 3_000_000_000])
def test_the_picture(devices):
    looks = [gauge.Look(t, 10**9 + t * 10**9, devices, t / 4) for t in range(5)]
    _, ax = plt.subplots()
    gauge.draw(ax, looks, kept=4e9)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    plt.close(ax.figure)
    assert list(lines["host, more than before"]) == [0, 1, 2, 3, 4]
    assert list(lines["weights loaded"]) == [0, 1, 2, 3, 4]
    assert set(lines["all weights"]) == {4.0}
    assert ("devices" in lines) == (devices is not None)
    assert ax.get_xlabel() and ax.get_ylabel()


def test_a_figure_is_drawn_seldom_and_at_the_end(monkeypatch):
    import IPython
    from IPython import display

    shown, drawn = [], []

    class Handle:
        def update(self, figure):
            shown.append("again")

    def first(figure, display_id):
        shown.append("first")
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": 1})())
    monkeypatch.setattr(display, "display", first)
    with redraw.Figure(drawn.append, every=1000) as figure:
        for _ in range(5):
            figure.redraw()
        assert shown == ["first"] and len(drawn) == 1
    assert shown == ["first", "again"] and len(drawn) == 2
    assert not plt.get_fignums()


def test_outside_of_a_notebook_nothing_is_drawn():
    def refuse(ax):
        raise AssertionError("drawn")

    with redraw.Figure(refuse) as figure:
        figure.redraw()
