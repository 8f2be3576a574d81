"""Numbers that a notebook shows as recorded are those in `benchmarks/results`."""

import ast
import json

import nbformat
import pytest

from book import build


def recorded(notebook, name):
    """Return the literal that a notebook's cell assigns to a name."""
    cells = nbformat.read(build.NOTEBOOKS / notebook, as_version=4).cells
    for cell in cells:
        if cell.cell_type == "code" and f"{name} = " in cell.source:
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and node.targets[0].id == name:
                    return eval(compile(ast.Expression(node.value), notebook, "eval"), {})
    raise AssertionError(f"{notebook} assigns no {name}")


def test_chapter_03_shows_the_long_read():
    shown = recorded("03_rope.ipynb", "READ")
    result = json.loads((build.ROOT / "benchmarks/results/long_context.json").read_text())
    measured = list(result["perplexity"].values())
    assert len(shown) == len(measured)
    for ours, theirs in zip(shown.values(), measured, strict=True):
        assert ours == pytest.approx(theirs, abs=0.006)
