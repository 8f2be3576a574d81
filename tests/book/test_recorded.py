"""Numbers that a notebook shows as recorded are those in `benchmarks/results`."""

import ast
import json
import re

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


def measured(name):
    """Return the perplexities that a benchmark found."""
    result = json.loads((build.ROOT / f"benchmarks/results/{name}.json").read_text())
    return list(result["perplexity"].values())


def test_chapter_03_shows_the_long_read():
    shown = recorded("03_rope.ipynb", "READ")
    for ours, theirs in zip(shown.values(), measured("long_context"), strict=True):
        assert ours == pytest.approx(theirs, abs=0.006)


def test_chapter_11_quotes_what_int8_costs():
    cells = nbformat.read(build.NOTEBOOKS / "11_int8.ipynb", as_version=4).cells
    (text,) = [cell.source for cell in cells if "benchmarks/int8_perplexity.py" in cell.source]
    wide, *small = measured("int8_perplexity")
    assert re.findall(r"\*\*([\d.]+)\*\*", text) == [f"{value:.3f}" for value in (wide, *small)]
    assert re.findall(r"\((.+%)\)", text) == [f"{value / wide - 1:+.2%}" for value in small]
