"""Build the site: execute the notebooks, stage pages and notebooks, run Jupyter Book."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from book import api, results
from book.notebooks import NotebookError, execute_all
from book.strip import NOTEBOOKS, ROOT

STAGE = ROOT / "_build" / "src"
SITE = ROOT / "_build" / "html"
STATUS_HEADER = """| notebook | seconds | machine | Python | jax | flax |
|---|--:|---|---|---|---|
"""


def status_table(notebooks: dict[str, nbformat.NotebookNode]) -> str:
    """Return the Markdown table of how long each notebook took, and where."""
    rows = []
    for name, notebook in notebooks.items():
        run = notebook.metadata["llama_nb"]
        facts = (run[field] for field in ("seconds", "machine", "python", "jax", "flax"))
        rows.append(f"| [](../notebooks/{name}) | " + " | ".join(map(str, facts)) + " |\n")
    return STATUS_HEADER + "".join(rows)


def join_streams(cell: nbformat.NotebookNode) -> None:
    """Make one output of a stream's pieces, which arrived one by one."""
    joined = []
    for output in cell.get("outputs", []):
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    if cell.cell_type == "code":
        cell.outputs = joined


def stage(notebooks: dict[str, nbformat.NotebookNode]) -> None:
    """Lay out in `_build/src` what Jupyter Book reads."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "_toc.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, STAGE)
    parts = {"_status_table.md": status_table(notebooks), **api.pages(), **results.parts()}
    for name, text in parts.items():
        (STAGE / "book" / name).write_text(text, encoding="utf-8")
    (STAGE / "notebooks").mkdir()
    for name, notebook in notebooks.items():
        # The badge's picture is on another host; the site has its own copy.
        first = notebook.cells[0]
        first.source = re.sub(
            r"https://\S+/colab-badge\.svg", "../book/_static/colab-badge.svg", first.source
        )
        for cell in notebook.cells:
            join_streams(cell)
        nbformat.write(notebook, STAGE / "notebooks" / name)


def main() -> int:
    """Build the site and say how to open it."""
    outcomes = execute_all(sorted(NOTEBOOKS.glob("*.ipynb")), lambda line: print(line, flush=True))
    failures = [str(error) for error in outcomes.values() if isinstance(error, NotebookError)]
    if failures:
        print("", *failures, sep="\n\n", file=sys.stderr)
        return 1
    stage({path.name: notebook for path, notebook in outcomes.items()})
    shutil.rmtree(SITE, ignore_errors=True)
    options = ["--all", "--quiet", "-W", "-n", "--keep-going", "--path-output", str(ROOT)]
    command = [Path(sys.executable).with_name("jupyter-book"), "build", str(STAGE), *options]
    print("Building the pages ...", flush=True)
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    built = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        print(built.stdout, "The site has errors or warnings, named above.", file=sys.stderr)
        return 1
    index = SITE / "index.html"
    print(f"\nThe book is built. Open {index.as_uri()}, or run `make serve`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
