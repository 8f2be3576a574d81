"""One look for every figure: colours with fixed meanings, labelled axes, readable sizes.

Colours are Okabe and Ito's, which stay apart for the colour-blind. A light background goes with
every figure, so that the text on it reads in dark pages too.
"""

import base64
import io
import math
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


def ink(colour: str) -> str:
    """Return black or white, whichever reads better on a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "white" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18 else BLACK


def box(
    ax: Any,
    place: tuple[float, float],
    size: tuple[float, float],
    text: str = "",
    colour: str = "#E4E4E4",
    **options: Any,
) -> None:
    """Draw a rectangle with a label in its middle, in the ink that its colour needs.

    Parameters
    ----------
    ax
        Matplotlib axes.
    place, size
        Lower left corner; width and height.
    text
        The label, of as many lines as fit.
    colour
        As "#RRGGBB".
    options
        Of the label, such as `fontsize`.
    """
    ax.add_patch(_rectangle(place, *size, facecolor=colour))
    middle = (place[0] + size[0] / 2, place[1] + size[1] / 2)
    options = {"ha": "center", "va": "center", "fontsize": 9, "color": ink(colour), **options}
    ax.text(*middle, text, **options)


def layout(ax: Any, shape: tuple[int, ...], sharding: Any) -> None:
    """Draw a matrix as devices hold it: one rectangle per part, and on it who has it.

    A part that one device holds is filled with its colour; one that several hold is grey, with a
    label for each.

    Parameters
    ----------
    ax
        Matplotlib axes; rows go down.
    shape
        Of the array: rows, columns, and further dimensions, which aren't drawn.
    sharding
        A `jax.sharding.Sharding`.
    """
    holders: dict[tuple[int, int, int, int], list[int]] = {}
    for device_, index in sharding.devices_indices_map(shape).items():
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(index[:2], shape[:2], strict=True)
        )
        holders.setdefault((left, right, top, bottom), []).append(device_.id)
    box = ax.get_window_extent()
    for (left, right, top, bottom), ids in holders.items():
        width, height = right - left, bottom - top
        tall = (box.height * height / shape[0]) / (box.width * width / shape[1])
        rows = min(
            (n for n in range(1, len(ids) + 1) if len(ids) % n == 0),
            key=lambda n: abs(math.log(n * n / (len(ids) * tall))),
        )
        columns = len(ids) // rows
        fill = device(ids[0]) if len(ids) == 1 else "#E4E4E4"
        ax.add_patch(_rectangle((left, top), width, height, facecolor=fill))
        for place, id_ in enumerate(sorted(ids)):
            row, column = divmod(place, columns)
            where = left + (column + 0.5) * width / columns, top + (row + 0.5) * height / rows
            options = {"ha": "center", "va": "center", "fontsize": 8}
            if len(ids) > 1:
                options["bbox"] = {"boxstyle": "round,pad=0.25", "fc": device(id_), "ec": "none"}
            ax.text(*where, id_, color=ink(device(id_)), **options)
    ax.set(xlim=(0, shape[1]), ylim=(shape[0], 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _rectangle(*place: Any, **options: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(*place, edgecolor="white", linewidth=1.5, **options)


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
    # On a phone the slider and the buttons would be wider than the page, and so the picture.
    page = page.replace("width: 374px;", "width: 374px; max-width: 100%;")
    page = page.replace("width: 36px;", "width: min(36px, 9.5%);")
    page = page.replace("inline-block;", "inline-block; max-width: 100%;")
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
