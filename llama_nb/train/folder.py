"""A run's folder: whose it is, what it says, and who is in it."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from llama_nb.errors import InputError

PAGE, LOG, _LOCK = "run.json", "log.jsonl", ".lock"


def claim(folder: Path) -> int:
    """Take a folder for this process; what is returned is to be closed.

    Raises
    ------
    InputError
        When it is a file, or another process has it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the run.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise InputError(f"{folder} is in use by another run.") from None
    return lock


def check(folder: Path, resume: bool) -> bool:
    """Return whether a folder holds a run to go on with.

    Raises
    ------
    InputError
        When it holds a run that is not to be resumed, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the run.")
    if (folder / PAGE).exists():
        if not resume:
            raise InputError(
                f"{folder} holds a run already; go on with --resume, or choose another folder."
            )
        return True
    if folder.is_dir() and any(path.name != _LOCK for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty, and holds no run.")
    return False


def identify(folder: Path, page: dict[str, Any], resume: bool) -> None:
    """Write what a new run is, or see that the folder's run is this one.

    Raises
    ------
    InputError
        As `check`, or when the run there is another: it says in what.
    """
    page = json.loads(json.dumps(page))
    if not check(folder, resume):
        _write(folder / PAGE, json.dumps(page, indent=1))
        return
    known = _flat(json.loads((folder / PAGE).read_text(encoding="utf-8")))
    for name, value in _flat(page).items():
        if known.get(name) != value:
            raise InputError(
                f"{folder} is a run with {name} = {known.get(name)}, and {value} was asked for."
            )


def cut_log(folder: Path, steps: int) -> None:
    """Forget what was logged after the checkpoint: it will be computed again."""
    log = folder / LOG
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()[:steps]
        _write(log, "".join(line + "\n" for line in lines))


def _flat(page: dict[str, Any]) -> dict[str, Any]:
    """Return what a page says, the entries of its parts as `part.entry`."""
    found = {}
    for name, value in page.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": known for inner, known in value.items()}
        else:
            found[name] = value
    return found


def _write(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
