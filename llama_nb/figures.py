"""One look for every figure: colours with fixed meanings, labelled axes, readable sizes.

Colours are Okabe and Ito's, which stay apart for the colour-blind. A light background goes with
every figure, so that the text on it reads in dark pages too.
"""

import base64
import io
import re
from typing import Any

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8A8A8A"

# What a colour means, wherever it appears.
BATCH, CONTRACTED, WEIGHTS, CACHE = BLUE, RED, PURPLE, GREEN
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK)

# For quantities from zero up, and for quantities around zero.
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"


def device(index: int) -> str:
    """Return the colour of device `index`, the same in every drawing; eight, then again."""
    return CYCLE[index % len(CYCLE)]


def use() -> None:
    """Give matplotlib the book's look; call it once, at the top of a notebook."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=CYCLE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.figsize": (7.2, 3.6),
            "font.size": 10.5,
            "grid.alpha": 0.3,
            "image.cmap": SEQUENTIAL,
            "legend.frameon": False,
            "savefig.dpi": 160,
            "savefig.facecolor": "white",
            "svg.fonttype": "path",
        }
    )


def heatmap(ax: Any, values: Any, *, label: str, **options: Any) -> Any:
    """Draw a matrix with a labelled colour bar and no grid; options are `imshow`'s.

    Parameters
    ----------
    ax
        Matplotlib axes.
    values
        Shape (rows, columns).
    label
        What the colours mean, with the unit.

    Returns
    -------
    matplotlib.image.AxesImage
        The picture, for more changes.
    """
    image = ax.imshow(values, **{"aspect": "auto", "interpolation": "nearest", **options})
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label=label)
    return image


def bars(ax: Any, names: list[str], values: Any, *, unit: str, format: str = "{:,.3g}") -> None:
    """Draw horizontal bars, first on top, each with its number.

    Parameters
    ----------
    ax
        Matplotlib axes.
    names
        One label per bar.
    values
        One number per bar.
    unit
        Label of the value axis.
    format
        How a number is written beside its bar.
    """
    drawn = ax.barh(range(len(names)), values)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.bar_label(drawn, [format.format(value) for value in values], padding=3)
    ax.set_xlabel(unit)
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)


_SYMBOLS = {
    "minus": "−",
    "fast-backward": "⏮",
    "step-backward": "⏪",
    "play fa-flip-horizontal": "◀",
    "pause": "⏸",
    "play": "▶",
    "step-forward": "⏩",
    "fast-forward": "⏭",
    "plus": "+",
}


def player(animation: Any, *, alt: str, fps: float = 2.0, dpi: int = 80) -> str:
    """Return an animation as HTML that needs nothing else, for `IPython.display.HTML`.

    It waits for the reader, plays once and stays on its last frame, which is also what shows where
    scripts don't run. Matplotlib's own page would fetch a font for its buttons from another host.

    Parameters
    ----------
    animation
        A `matplotlib.animation.Animation`. Its figure is closed, so that it isn't shown twice.
    alt
        What there is to see, for those who can't.
    fps
        Frames per second.
    dpi
        Dots per inch; every frame is a PNG file inside the page.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context({"savefig.dpi": dpi}):
        page = animation.to_jshtml(fps=fps, default_mode="once")
    plt.close(animation._fig)
    page = re.sub(r"<link[^>]*>", "", page)
    for icon, symbol in _SYMBOLS.items():
        page = page.replace(f'<i class="fa fa-{icon}"></i>', symbol)
    frames = re.findall(r'"data:image/png;base64,([^"]*)"', page)
    for frame in frames:
        page = page.replace(frame, _fewer_colours(frame))
    last = re.findall(r'"(data:image/png;base64,[^"]*)"', page)[-1]
    return page.replace("<img id=", f'<img alt="{alt}" src="{last}" style="max-width:100%" id=')


def _fewer_colours(png: str) -> str:
    """Return a PNG in base64 with 64 colours: a third of the bytes."""
    from PIL import Image

    small = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png.replace("\\\n", ""))))
    picture.convert("RGB").quantize(64).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()
