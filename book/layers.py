"""Draw folders and import layers: `python book/layers.py` writes `_static/architecture.svg`.

The layers are those that `pyproject.toml` gives to the linter of imports, so picture, page and
check can't say different things.
"""

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "book" / "_static" / "architecture.svg"
PACKAGE = ROOT / "llama_nb"

# What a layer is for, from the top; its modules are in `pyproject.toml`.
TITLES = (
    "Doors: what you type",
    "Jobs: load, generate, train, compile, check",
    "Programs and files of a job",
    "The model made smaller, or spread out",
    "The model",
    "Mathematics: arrays in, arrays out",
    "Text: characters, tokens, batches",
    "Sizes and machines: what it costs",
    "A model's shape, and files from elsewhere",
    "Ground",
)
OUTSIDE = (
    ("notebooks", "the chapters"),
    ("book", "pages, and what builds the site"),
    ("tests", "what must be true"),
    ("benchmarks", "a script for each claim"),
    ("cluster", "hosts: start, stop, recipes"),
)
WIDTH, SIDE, INNER = 400, 12, 10  # units; a phone shows nearly one pixel for each
GLYPH = 7.3  # width of a letter of code
INK, PALE, LINE = "#16324f", "#eef4f9", "#9db4c8"


def layers() -> list[list[str]]:
    """Return the modules and packages of every layer, the highest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (rows,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in row.split(":")] for row in rows]


def text(x: float, y: float, words: str, kind: str) -> str:
    """Return words at a place, in one of the kinds that `STYLE` knows."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    """Return a rectangle."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="5" fill="{fill}" stroke="{LINE}"/>'


def chips(names: list[str], y: float) -> tuple[list[str], float]:
    """Return names in boxes, line by line, and where the next line would begin."""
    parts, x, right = [], SIDE + INNER, WIDTH - SIDE - INNER
    for name in names:
        shown = f"{name}/" if (PACKAGE / name).is_dir() else name
        width = GLYPH * len(shown) + 12
        if x + width > right:
            x, y = SIDE + INNER, y + 27
        length = f'textLength="{GLYPH * len(shown):g}"'  # whatever font there is, it fits
        parts += [
            box(x, y, width, 22, "#ffffff"),
            f'<text x="{x + 6:g}" y="{y + 15.5:g}" class="code" {length}>{escape(shown)}</text>',
        ]
        x += width + 5
    return parts, y + 27


STYLE = f"""<style>
text {{ font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: {INK} }}
.name {{ font-size: 13.5px; font-weight: 600 }}
.note {{ font-size: 13px }}
.code {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12px }}
</style>"""


def draw() -> str:
    """Return the picture as SVG."""
    parts, y = [], 12
    for name, about in OUTSIDE:
        parts += [text(SIDE, y + 13, f"{name}/", "name"), text(SIDE + 112, y + 13, about, "note")]
        y += 21
    parts.append(text(SIDE, y + 20, "all use ↓", "note"))
    y += 32
    parts.append(text(SIDE, y + 12, "llama_nb/", "name"))
    parts.append(text(SIDE + 112, y + 12, "where imports go down only", "note"))
    y += 22
    for title, names in zip(TITLES, layers(), strict=True):
        row, end = chips(names, y + 27)
        height = end - y + 3
        parts += [
            box(SIDE, y, WIDTH - 2 * SIDE, height, PALE),
            text(SIDE + INNER, y + 18, title, "name"),
            *row,
        ]
        y += height + 6
    y += 6
    size = f'viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}"'
    ground = f'<rect width="{WIDTH}" height="{y:g}" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, STYLE, ground, *parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
