"""Build the site: execute each notebook once, stage pages and notebooks, run Jupyter Book.

An executed notebook is kept in the user's cache under a key of all that it depends on, so only
what changed runs again. The tests execute notebooks through the same `execute`.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from book import api, results
from llama_nb.devices import prefer_cpu_if_alone

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
STAGE = ROOT / "_build" / "src"
SITE = ROOT / "_build" / "html"
CELL_TIMEOUT = 600  # seconds
ENVIRONMENT = dict(os.environ)  # as found: importing JAX, for one, adds variables later
# What a notebook may read besides itself, and the packages whose version shows in its outputs.
DEPENDS = ("llama_nb/**/*.py", "cluster/**/*", "benchmarks/**/*.py", "benchmarks/results/**/*.json")
RELEVANT = ("JAX_", "XLA_", "LIBTPU_", "LLAMA_NB_8B")  # variables that change outputs
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "optax",
    "matplotlib",
    "safetensors",
    "gguf",
    "tiktoken",
    "sentencepiece",
    "datasets",
    "treescope",
    "ipykernel",
    "ipyparallel",
    "libtpu",
)
STATUS_HEADER = """| notebook | seconds | machine | Python | jax | flax |
|---|--:|---|---|---|---|
"""


class NotebookError(Exception):
    """A notebook did not run to its end; the message shows the cell and what it said."""


def cache_dir() -> Path:
    """Return the folder where executed notebooks are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama_nb"
    return Path(os.environ.get("LLAMA_NB_CACHE") or base).expanduser() / "executed"


def kernel_env() -> dict[str, str]:
    """Return a kernel's environment: this one, and JAX on the CPU where there is nothing better.

    Chapter 23 runs with the small model, unless the environment names other weights.
    """
    fixed = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    env = {**fixed, "LLAMA_NB_8B": "small", **ENVIRONMENT}
    prefer_cpu_if_alone(env)
    return env


def machine() -> str:
    """Describe this machine in a few words."""
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {size / 2**30:.0f} GiB"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{memory}"


def version(package: str) -> str:
    """Return the version of a package, or "-" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def key(path: Path) -> str:
    """Return the sha256 of all that the outputs of this notebook depend on."""
    digest = hashlib.sha256()
    files = {file for pattern in DEPENDS for file in ROOT.glob(pattern) if file.is_file()}
    for file in [path, *sorted(file for file in files if "__pycache__" not in file.parts)]:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    env = {k: v for k, v in kernel_env().items() if k.startswith(RELEVANT)}
    facts = [platform.python_version(), machine(), sorted(env.items())]
    digest.update(repr([*facts, *((name, version(name)) for name in PACKAGES)]).encode())
    return digest.hexdigest()


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs, from the cache or by running it from top to bottom."""
    kept = cache_dir() / f"{path.stem}-{key(path)[:20]}.ipynb"
    if kept.exists():
        return nbformat.read(kept, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    started = time.perf_counter()
    try:
        client.execute(env=kernel_env())
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        shown = text if len(text) < 60 else [*text[:30], "...", *text[-25:]]
        raise NotebookError("\n".join([f"{path.name} failed:", *shown])) from None
    notebook.metadata["llama_nb"] = {
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "flax": version("flax"),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(f".{os.getpid()}")
    nbformat.write(notebook, draft)
    draft.replace(kept)
    return notebook


def execute_all() -> dict[str, nbformat.NotebookNode]:
    """Return every notebook executed, by file name; show progress, and all failures at the end."""
    done, failures = {}, []
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {path.name} ...", end=" ", flush=True)
        started = time.perf_counter()
        try:
            done[path.name] = notebook = execute(path)
        except NotebookError as error:
            print("FAILED")
            failures.append(str(error))
            continue
        recorded = notebook.metadata["llama_nb"]["seconds"]
        now = time.perf_counter() - started
        print(f"{recorded:.1f} s" + ("" if now > recorded / 2 else ", executed before, unchanged"))
    if failures:
        raise NotebookError("\n\n".join(failures))
    return done


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
    try:
        stage(execute_all())
    except NotebookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
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
