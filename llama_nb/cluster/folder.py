"""The folder of the cluster on this machine: where it is, what is in it, whose turn it is."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_nb import assets
from llama_nb.errors import InputError


def default_folder() -> Path:
    """Return where the cluster is: `LLAMA_NB_CLUSTER`, or a folder in the cache."""
    own = os.environ.get("LLAMA_NB_CLUSTER")
    return Path(own).expanduser() if own else assets.cache_dir() / "cluster"


def client_file(folder: Path) -> Path:
    """Return where a cluster's connection file for clients is."""
    return folder / "security" / "ipcontroller-client.json"


def folder_of(file: Path) -> Path | None:
    """Return the folder of the cluster on this machine that a connection file belongs to."""
    folder = file.parent.parent
    return folder if (folder / "cluster.json").is_file() else None


def read(folder: Path) -> dict[str, Any] | None:
    """Return what `start` was asked for: hosts, devices, platform, and the processes' mark."""
    try:
        return json.loads((folder / "cluster.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def clear(folder: Path) -> None:
    """Remove what a cluster that has ended left in its folder, its logs excepted."""
    shutil.rmtree(folder / "security", ignore_errors=True)
    for path in [*folder.glob("*.pid"), folder / "cluster.json", folder / "ipcontroller_config.py"]:
        path.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a file that only its owner ever could read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder for oneself, so that two that start at once start one cluster."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(f"{folder} can't hold a cluster ({error.strerror}).") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
