"""Draw the book's mark and its card: `python book/brand.py` writes them into `_static`.

The mark is a causal mask over a grid of four by four: what the newest token (orange) may look at.
It is also the smallest pod of the book.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from llama_nb import figures

STATIC = Path(__file__).parent / "_static"
SIDE, STEP, EDGE = 4, 15, 2  # squares, pixels from one to the next, pixels around them
DOORS = (("Read", "every page executed"), ("Run", "on a laptop or Colab"), ("Drive", "a TPU pod"))
TITLE = "Llama 3 in JAX,\nfrom one norm to a pod"


def color(row: int, column: int) -> str | None:
    """Return the colour of a square, or None where the mask hides it."""
    if column > row:
        return None
    return figures.ORANGE if row == SIDE - 1 else figures.BLUE


def mark() -> str:
    """Return the mark as SVG; hidden squares are faint, on light grounds and on dark ones."""
    squares = [
        f'<rect x="{EDGE + STEP * column}" y="{EDGE + STEP * row}" width="{STEP - 3}" '
        f'height="{STEP - 3}" rx="3" '
        + (f'fill="{fill}"/>' if (fill := color(row, column)) else 'fill="#8a8a8a" opacity=".3"/>')
        for row in range(SIDE)
        for column in range(SIDE)
    ]
    size = 2 * EDGE + SIDE * STEP - 3
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" '
    return "\n".join([f'{head}width="{size}" height="{size}">', *squares, "</svg>\n"])


def card(path: Path) -> None:
    """Draw what a link to the book shows elsewhere, 1200 by 630 pixels."""
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="#10222e")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(630, 0))
    ax.axis("off")
    for row in range(SIDE):
        for column in range(SIDE):
            fill = color(row, column)
            fill = figures.SKY if fill == figures.BLUE else fill or "#2a4252"
            style = "round,pad=0,rounding_size=12"
            box = (800 + 84 * column, 110 + 84 * row)
            ax.add_patch(FancyBboxPatch(box, 70, 70, boxstyle=style, facecolor=fill, linewidth=0))
    ax.text(70, 195, TITLE, color="white", size=35, weight="bold", va="center", linespacing=1.35)
    line = "Built in front of you, checked against\nreferences nobody here wrote, measured."
    ax.text(70, 365, line, color="#c8d6df", size=24, va="center", linespacing=1.5)
    for index, (door, what) in enumerate(DOORS):
        ax.text(70 + 370 * index, 510, door, color=figures.ORANGE, size=27, weight="bold")
        ax.text(70 + 370 * index, 558, what, color="#c8d6df", size=20)
    fig.savefig(path, dpi=100, facecolor=fig.get_facecolor(), metadata={"Software": None})
    plt.close(fig)


def main() -> None:
    """Write the pictures."""
    for name in ("logo.svg", "favicon.svg"):
        (STATIC / name).write_text(mark(), encoding="utf-8")
    card(STATIC / "card.png")


if __name__ == "__main__":
    main()
