"""Execute notebooks, each once for all who want its outputs.

An executed notebook is kept in the user's cache under a key of all that it depends on, so only
what changed runs again. The site and the tests get theirs here.
"""

import asyncio
import collections
import concurrent.futures
import hashlib
import importlib.metadata
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from book.strip import ROOT
from book.turns import Turns, that_measure
from llama_nb.assets import cache_dir
from llama_nb.devices import machine_memory, prefer_cpu_if_alone

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
FORM = 2  # of what is kept: raised when it changes
LANES, LANE_MEMORY = 4, 5 * 2**30  # at most so many notebooks at a time, and bytes for each
TURNS = Turns()
RUNNING: set["Client"] = set()


class NotebookError(Exception):
    """A notebook did not run to its end; the message shows the cell and what it said."""


class Client(NotebookClient):
    """Runs a notebook's cells; while one measures, no other client's run."""

    def __init__(self, notebook: nbformat.NotebookNode, **options):
        super().__init__(notebook, **options)
        self.measuring, self.waited = that_measure(notebook.cells), 0.0
        self.killed = False

    async def async_execute_cell(self, cell, cell_index, **options):
        """Execute a cell when it is its turn. A thread has one client, so waiting may block it."""
        with TURNS.take(alone=cell_index in self.measuring) as waited:
            self.waited += waited
            if self.killed:
                raise DeadKernelError("stopped")
            return await super().async_execute_cell(cell, cell_index, **options)

    def kill(self) -> None:
        """End the kernel at once, from any thread: the cell that runs fails."""
        self.killed = True
        if self.km is not None and self.km.has_kernel:
            self.km.provisioner.process.kill()


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
    size = machine_memory()
    size = f", {size / 2**30:.0f} GiB" if size else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{size}"


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
    facts = [FORM, platform.python_version(), machine(), sorted(env.items())]
    digest.update(repr([*facts, *((name, version(name)) for name in PACKAGES)]).encode())
    return digest.hexdigest()


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs, from the cache or by running it from top to bottom."""
    kept = cache_dir() / "executed" / f"{path.stem}-{key(path)[:20]}.ipynb"
    if kept.exists():
        return nbformat.read(kept, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    started = time.perf_counter()
    RUNNING.add(client)
    try:
        asyncio.run(client.async_execute(env=kernel_env()))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        shown = text if len(text) < 60 else [*text[:30], "...", *text[-25:]]
        raise NotebookError("\n".join([f"{path.name} failed:", *shown])) from None
    finally:
        RUNNING.remove(client)
    notebook.metadata["llama_nb"] = {
        "seconds": round(time.perf_counter() - started - client.waited, 1),
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


def lanes() -> int:
    """Return how many notebooks run at a time: on two cores two, for compiling keeps one busy."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(count or 1, max(2, (count or 1) // 2))
    return max(1, min(LANES, count, (machine_memory() or 0) // LANE_MEMORY))


def execute_all(
    paths: Sequence[Path], say: Callable[[str], None]
) -> dict[Path, nbformat.NotebookNode | NotebookError]:
    """Return each notebook executed, or its error; say of each when it is done.

    They run side by side, but for cells that measure: these have the machine to themselves.
    """
    done, left, one = {}, collections.deque(paths), threading.Lock()

    def run(path: Path) -> None:
        started = time.perf_counter()
        try:
            outcome = execute(path)
        except NotebookError as error:
            outcome, said = error, "FAILED"
        else:
            seconds = outcome.metadata["llama_nb"]["seconds"]
            kept = time.perf_counter() - started < seconds / 2
            said = f"{seconds:.1f} s" + (", executed before, unchanged" if kept else "")
        with one:
            done[path] = outcome
            say(f"[{len(done)}/{len(paths)}] {path.name}: {said}")

    def lane(_: int) -> None:
        while True:
            try:
                path = left.popleft()
            except IndexError:
                return
            run(path)

    with concurrent.futures.ThreadPoolExecutor(lanes()) as pool:
        try:
            list(pool.map(lane, range(lanes())))
        except BaseException:  # interrupted, or one lane broke
            left.clear()
            for client in tuple(RUNNING):
                client.kill()
            raise
    return {path: done[path] for path in paths}
