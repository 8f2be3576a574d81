"""Bring notebooks into the one form that is committed, or check that they are in it.

No outputs, execution counts or editor metadata; cell ids by position; the Colab badge under the
title; the second cell is `book/setup_cell.py`. Run as `python book/strip.py [--check] [FILES]`.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE = re.compile(r"^\[!\[[^\]]*\]\([^)]*colab-badge[^)]*\)\]\([^)]*\)$", re.MULTILINE)
KEPT_METADATA = {"tags", "mystnb"}  # `mystnb` carries the alt text of a cell's picture
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def repository() -> tuple[str, str]:
    """Return the repository's address and branch, which `_config.yml` alone decides."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"], config["repository"]["branch"]


def badge(name: str) -> str:
    """Return the Markdown of the badge that opens a notebook of this file name on Colab."""
    url, branch = repository()
    path = url.removeprefix("https://github.com/") + f"/blob/{branch}/notebooks/{name}"
    return f"[![Open in Colab]({BADGE_IMAGE})](https://colab.research.google.com/github/{path})"


def setup_source() -> str:
    """Return the source of every notebook's second cell."""
    return (ROOT / "book" / "setup_cell.py").read_text(encoding="utf-8").rstrip("\n")


def is_setup(cell: nbformat.NotebookNode) -> bool:
    """Tell whether a cell is some version of the setup cell."""
    return cell.cell_type == "code" and "setup" in cell.metadata.get("tags", [])


def title_cell(source: str, name: str) -> str:
    """Return the first cell with the right badge, once, under its title."""
    title, _, rest = BADGE.sub("", source).partition("\n")
    return "\n\n".join(part for part in (title, badge(name), rest.strip("\n")) if part)


def normalize(notebook: nbformat.NotebookNode, name: str) -> str:
    """Return the text of the file `name` that holds this notebook in its committed form."""
    cells = [cell for cell in notebook.cells if cell.source.strip() and not is_setup(cell)]
    if cells and cells[0].cell_type == "markdown":
        cells[0].source = title_cell(cells[0].source, name)
    setup = nbformat.v4.new_code_cell(setup_source(), metadata={"tags": ["setup", "hide-input"]})
    cells.insert(1, setup)
    for position, cell in enumerate(cells):
        cell.id = f"cell-{position}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in KEPT_METADATA}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells = cells
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1, ensure_ascii=False).rstrip("\n") + "\n"


def main() -> int:
    """Normalize the files named, or all notebooks; with --check, only name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    parser.add_argument("files", nargs="*", type=Path, help="default: every notebook")
    arguments = parser.parse_args()
    differ = 0
    for path in arguments.files or sorted(NOTEBOOKS.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = normalize(nbformat.reads(before, as_version=4), path.name)
        if before == after:
            continue
        differ += 1
        if arguments.check:
            print(f"{path} is not in its committed form: run python book/strip.py {path}")
        else:
            path.write_text(after, encoding="utf-8")
            print(f"stripped {path}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
