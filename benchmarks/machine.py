"""Who measured: the machine, the versions, and where results are kept."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from llama_nb.devices import machine_memory

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Return what a reader needs to judge a number: processor, cores, memory, versions."""
    versions = {}
    for package in ("jax", "flax", "libtpu", "numpy", "torch", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round((machine_memory() or 0) / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/NAME.json`, the machine first, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **figures}, indent=2) + "\n")
    return path
