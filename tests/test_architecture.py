"""Imports go down, and the picture and the page of the architecture show all there is."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

from book import layers

ROOT, PACKAGE = layers.ROOT, layers.PACKAGE
LINTER = "from importlinter.cli import lint_imports_command; lint_imports_command()"
THERE = {
    path.stem
    for path in PACKAGE.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
} - {"__init__"}


def lint(folder):
    """Run the linter with the contracts of `folder`; return its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_imports_go_down():
    pytest.importorskip("importlinter")
    status, said = lint(ROOT)
    assert status == 0, said


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [
        ("config", "from llama_nb import model", "imports go down BROKEN"),
        ("kernels/ragged", "from llama_nb.kernels import decode", "no circles.* BROKEN"),
        ("layers", "import transformers", "references are for tests BROKEN"),
        ("nowhere", "", "nowhere"),
    ],
)
def test_the_linter_sees(tmp_path, module, line, says):
    pytest.importorskip("importlinter")
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with (tmp_path / "llama_nb" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    status, said = lint(tmp_path)
    assert status == 1
    assert re.search(says, said), said


def test_the_picture_is_drawn_from_the_contracts():
    assert layers.PICTURE.read_text(encoding="utf-8") == layers.draw(), (
        "run python book/layers.py to draw the picture again"
    )


def test_the_picture_shows_every_module():
    shown = re.findall(r'class="code"[^>]*>([\w/]+)<', layers.draw())
    assert {name.rstrip("/") for name in shown} == THERE
    assert len(shown) == len(THERE)


def test_the_page_names_modules_that_exist():
    page = (ROOT / "book" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Where a line lives")[2].partition("\n## ")[0]
    packages = {name for name in THERE if (PACKAGE / name).is_dir()}
    inside = {"decode", "flash"}  # of kernels/
    named = set(re.findall(r"`(\w+)/?`", table)) - {"jit", "shard_map"} - inside
    assert named <= THERE
    assert packages <= named


def imported(path):
    """Yield the module and the name of everything that a script imports from the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llama_nb"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("folder", ["benchmarks", "book", "cluster"])
def test_scripts_import_names_that_exist(folder):
    """No test runs the long ones, so none else would see that a name has moved."""
    found = {pair for path in (ROOT / folder).rglob("*.py") for pair in imported(path)}
    assert found
    for module, name in sorted(found):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")  # a module of the package
