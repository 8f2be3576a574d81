"""One look for every figure: colours with fixed meanings, labelled axes, readable sizes.

Colours are Okabe and Ito's, which stay apart for the colour-blind. A light background goes with
every figure, so that the text on it reads in dark pages too.
"""

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
