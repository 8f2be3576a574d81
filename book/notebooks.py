"""Execute notebooks, each once for all who want its outputs.

An executed notebook is kept in the user's cache under a key of all that it depends on, so only
what changed runs again. The site and the tests get theirs here.
"""

import collections
import concurrent.futures
import hashlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from book.strip import ROOT
from llama_nb.devices import prefer_cpu_if_alone

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
# What a notebook says that times its own work: such a one has the machine to itself.
MEASURES = re.compile(r"\b(perf_counter|best_seconds|roofline\.measure)\(")
LANES, LANE_MEMORY = 4, 5  # at most so many notebooks at a time, and GiB for each


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


def memory() -> float:
    """Return this machine's memory in GiB, 0 where it is not known."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return 0


def cores() -> list[int]:
    """Return the numbers of the cores on which what this thread starts may run."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def machine() -> str:
    """Describe this machine in a few words."""
    size = f", {memory():.0f} GiB" if memory() else ""
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
        "cores": len(cores()),
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


def measures(path: Path) -> bool:
    """Return whether a notebook times this machine."""
    cells = nbformat.read(path, as_version=4).cells
    return any(cell.cell_type == "code" and MEASURES.search(cell.source) for cell in cells)


def side_by_side(work: Callable[[Path], None], paths: Iterable[Path]) -> None:
    """Do the work for each path, as many at a time as there are cores, each on its share of them.

    Two that ran on all cores would wait for each other's threads and take longer than in turn.
    """
    count = max(1, min(LANES, len(cores()), int(memory() / LANE_MEMORY)))
    left = collections.deque(paths)

    def lane(share: list[int]) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, share)  # of this thread, and of the kernels it starts
        while left:
            work(left.popleft())

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        try:
            list(pool.map(lane, [cores()[number::count] for number in range(count)]))
        finally:
            left.clear()  # interrupted, or one lane broke: the others begin nothing new


def execute_all(
    paths: Sequence[Path], say: Callable[[str], None]
) -> dict[Path, nbformat.NotebookNode | NotebookError]:
    """Return each notebook executed, or its error: first those that measure, one by one."""
    done = {}

    def run(path: Path) -> None:
        started = time.perf_counter()
        try:
            done[path] = execute(path)
        except NotebookError as error:
            done[path], said = error, "FAILED"
        else:
            seconds = done[path].metadata["llama_nb"]["seconds"]
            kept = time.perf_counter() - started < seconds / 2
            said = f"{seconds:.1f} s" + (", executed before, unchanged" if kept else "")
        say(f"[{len(done)}/{len(paths)}] {path.name}: {said}")

    alone = [path for path in paths if measures(path)]
    for path in alone:
        run(path)
    side_by_side(run, [path for path in paths if path not in alone])
    return {path: done[path] for path in paths}
