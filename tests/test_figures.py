import re

import pytest

from llama_nb import figures


@pytest.fixture
def page(monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation

    figure, ax = plt.subplots(figsize=(2, 1))
    (line,) = ax.plot([0, 1], [0, 0])
    animation = FuncAnimation(figure, lambda frame: line.set_ydata([0, frame]), frames=3)
    html = figures.player(animation, alt="A line that rises.", fps=1)
    assert not plt.fignum_exists(figure.number)
    return html


def test_player_needs_nothing_else_and_says_what_it_shows(page):
    assert "http" not in page.replace("http://www.w3.org", "")
    assert 'alt="A line that rises."' in page
    assert '"fa' not in page and "▶" in page


def test_player_shows_the_last_frame_without_scripts(page):
    still = re.search(r'<img alt="[^"]*" src="([^"]*)"', page).group(1)
    frames = re.findall(r'frames\[\d+\] = "([^"]*)"', page)
    assert len(frames) == 3
    assert still == frames[-1] != frames[0]
    assert 'value="once"' in page and re.search(r'value="once"[^>]*checked', page)


def test_layout_draws_each_part_once_and_names_all_its_devices():
    import matplotlib

    matplotlib.use("agg")
    import jax
    import matplotlib.pyplot as plt
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    devices = jax.devices()[:8]
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)
    for spec, parts in (((None, None), 1), (("data", None), 2), (("model", "data"), 8)):
        figure, ax = plt.subplots()
        figures.layout(ax, (8, 16), NamedSharding(mesh, PartitionSpec(*spec)))
        assert len(ax.patches) == parts
        assert sorted(int(text.get_text()) for text in ax.texts) == list(range(8))
        plt.close(figure)


def test_ink_is_readable_on_every_device():
    assert figures.ink(figures.YELLOW) == figures.BLACK
    assert figures.ink(figures.BLACK) == "white" == figures.ink(figures.BLUE)


def test_box_has_its_label_in_the_middle_in_ink_that_reads():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    figures.box(ax, (1, 2), (4, 1), "dark", figures.BLUE)
    figures.box(ax, (1, 4), (4, 1), "light", fontsize=12)
    assert [patch.get_bbox().bounds for patch in ax.patches] == [(1, 2, 4, 1), (1, 4, 4, 1)]
    dark, light = ax.texts
    assert (dark.get_position(), light.get_position()) == ((3, 2.5), (3, 4.5))
    assert (dark.get_color(), light.get_color()) == ("white", figures.BLACK)
    assert (dark.get_text(), light.get_fontsize()) == ("dark", 12)
    plt.close(figure)
