"""Processes that bear a mark: found, told apart from others, and ended."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_nb.errors import MissingDependencyError

# Every process of a cluster, schedulers and nannies included, inherits both from its first one.
MARK, NAME = "LLAMA_NB_CLUSTER_TOKEN", "LLAMA_NB_HOST"


def running(mark: str) -> dict[str, list[Any]]:
    """Return the processes with a mark by host, whoever their parent is; not this one."""
    found: dict[str, list[Any]] = {}
    psutil = _psutil()
    for process in psutil.process_iter():
        # Others' processes don't show theirs; zombies have none.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            ours = environment.get(MARK) == mark and process.pid != os.getpid()
            if ours and alive(process):
                found.setdefault(environment.get(NAME, ""), []).append(process)
    return found


def leader(file: Path, there: Sequence[Any]) -> Any:
    """Return the process whose number a file holds, if it is one of those that run."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text(encoding="utf-8"))
        return next((process for process in there if process.pid == pid), None)
    return None


def end(processes: Sequence[Any], patience: float) -> None:
    """End processes, which psutil tells from later ones with the same number.

    Parameters
    ----------
    patience
        Seconds in which they may end by themselves.
    """
    psutil = _psutil()
    for signum, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5)):
        if signum == signal.SIGTERM and not patience:
            continue
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signum)
        deadline = time.monotonic() + seconds
        while (processes := [p for p in processes if alive(p)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def alive(process: Any) -> bool:
    """Return whether a process still runs."""
    # A zombie has ended; whether its parent ever looks is not ours to wait for.
    with contextlib.suppress(_psutil().Error):
        return process.is_running() and process.status() != "zombie"
    return False


def reap(process: subprocess.Popen) -> None:
    """Wait for a process in the background: it may outlive this one, but leaves no zombie here."""
    threading.Thread(target=process.wait, daemon=True).start()


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        raise MissingDependencyError(
            "a cluster needs ipyparallel: pip install 'llama_nb[cluster]'."
        ) from None
    return psutil
