"""A real cluster on one machine: a controller, and an engine process for each host it plays.

Each engine has a host's name and a few virtual devices of the CPU. All files are in one folder that
only its owner can read; controller and engines listen on 127.0.0.1 only, encrypted. What JAX opens
once they `join` is its own: on CPU at the address that this machine's name stands for, as it is.
"""

import atexit
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llama_nb.cluster.folder import clear, client_file, default_folder, locked, read, write
from llama_nb.cluster.processes import MARK, NAME, alive, end, leader, reap, running
from llama_nb.errors import InputError

_CONTROLLER = "controller"
_GUARD = "guard"


def start(
    hosts: int = 2,
    devices: int = 4,
    *,
    notebook: bool = False,
    platform: str = "cpu",
    folder: str | Path | None = None,
    timeout: float = 60,
    until_exit: bool = False,
) -> list[str]:
    """Start what isn't running yet, and return its names: nothing, the second time.

    Parameters
    ----------
    hosts, devices
        Engines, and virtual CPU devices of each.
    notebook
        Leave the first host to a notebook's own process: `connect(local=True)`.
    platform
        For `JAX_PLATFORMS`.
    folder
        Default: `default_folder()`.
    timeout
        Seconds until all must be there.
    until_exit
        Stop it when this Python ends, however it does: a notebook's kernel may be killed.

    Raises
    ------
    InputError
        When another kind of cluster runs in this folder, or a process doesn't come up.
    """
    if hosts < 1 + notebook or devices < 1:
        raise InputError(
            f"a cluster of {hosts} hosts with {devices} devices was asked for; it takes at least "
            f"{1 + notebook} and 1."
        )
    what = {
        "hosts": [f"host{n}" for n in range(hosts)],
        "devices": devices,
        "notebook": notebook,
        "platform": platform,
    }
    folder = Path(folder or default_folder()).absolute()
    with locked(folder):
        state = read(folder)
        if state is not None and not _running(state):
            clear(folder)
            state = None
        if state is None:
            state = {**what, "mark": secrets.token_hex(16)}
            write(folder / "cluster.json", json.dumps(state))
        elif {name: state[name] for name in what} != what:
            raise InputError(
                f"a cluster of {len(state['hosts'])} hosts with {state['devices']} devices each "
                f"runs in {folder} already; stop it first, or give this one another --folder."
            )
        if until_exit and _GUARD not in _running(state):
            _start_guard(folder, state)
        return _start_missing(folder, state, timeout)


def restart(folder: str | Path | None = None, *, timeout: float = 60) -> None:
    """Replace all engines; the controller and its clients stay.

    Raises
    ------
    InputError
        When no cluster runs.
    """
    folder = Path(folder or default_folder()).absolute()
    with locked(folder):
        state = read(folder)
        there = _running(state)
        if _CONTROLLER not in there:
            raise InputError(f"no cluster runs in {folder}; start one first.")
        engines = {name: there[name] for name in _names(state)[1:] if name in there}
        leaders = [leader(folder / f"{name}.pid", own) for name, own in engines.items()]
        end([process for process in leaders if process is not None], 0)
        # Each engine's nanny tells the controller of its death and ends by itself.
        rest = [process for own in engines.values() for process in own]
        deadline = time.monotonic() + 5
        while any(map(alive, rest)) and time.monotonic() < deadline:
            time.sleep(0.05)
        end(rest, 0)
        _start_missing(folder, state, timeout)


def stop(folder: str | Path | None = None) -> list[str]:
    """End every process of the cluster, nothing else, and return the names of what ran."""
    folder = Path(folder or default_folder()).absolute()
    if not folder.exists():
        return []
    with locked(folder):
        state = read(folder)
        names = [name for name in _running(state) if name != _GUARD]
        while left := [process for own in _running(state).values() for process in own]:
            end(left, 2)
        clear(folder)
        return names


def status(folder: str | Path | None = None) -> dict[str, list[int]]:
    """Return process ids by host name; none for what doesn't run, empty when nothing does."""
    folder = Path(folder or default_folder()).absolute()
    state = read(folder)
    there = _running(state)
    return {n: [p.pid for p in there.get(n, [])] for n in _names(state)} if there else {}


def _running(state: dict[str, Any] | None) -> dict[str, list[Any]]:
    return running(state["mark"]) if state else {}


def _names(state: dict[str, Any]) -> list[str]:
    return [_CONTROLLER, *state["hosts"][state["notebook"] :]]


def _start_missing(folder: Path, state: dict[str, Any], timeout: float) -> list[str]:
    deadline, started = time.monotonic() + timeout, []
    for name in _names(state):
        there = _running(state).get(name, [])
        if leader(folder / f"{name}.pid", there) is not None:
            continue
        end(there, 0)  # What a process that died left behind.
        if name == _CONTROLLER:
            # Engines that knew the last controller can't find this one.
            rest = _running(state)
            rest.pop(_GUARD, None)
            end([process for own in rest.values() for process in own], 0)
            shutil.rmtree(folder / "security", ignore_errors=True)
            _configure(folder)
        process = _launch(folder, state, name)
        started.append(name)
        if name == _CONTROLLER:
            _await_controller(folder, process, deadline)
    if started:
        _await_engines(folder, state, deadline)
    return started


def _start_guard(folder: Path, state: dict[str, Any]) -> None:
    """Start a process that stops the cluster once the pipe from this one closes."""
    code = "import sys; sys.stdin.read(); from llama_nb.cluster import local; local.stop({!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code.format(str(folder))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment(state, _GUARD),
        start_new_session=True,
    )
    reap(process)
    atexit.register(stop, folder)  # At an orderly end, nothing is left a moment later.


def _configure(folder: Path) -> None:
    """Write how the controller listens: here only, encrypted, and every message signed."""
    (folder / "security").mkdir(mode=0o700, exist_ok=True)
    (folder / "log").mkdir(mode=0o700, exist_ok=True)
    lines = [
        "c = get_config()  # noqa: F821",
        'c.IPController.ip = "127.0.0.1"',
        'c.IPController.location = "127.0.0.1"',
        "c.IPController.enable_curve = True",
        f'c.Session.key = b"{secrets.token_hex(32)}"',
        "c.HeartMonitor.period = 1000  # milliseconds",
        "c.HeartMonitor.max_heartmonitor_misses = 20  # a host that misses more is dead",
    ]
    write(folder / "ipcontroller_config.py", "\n".join(lines) + "\n")


def _environment(state: dict[str, Any], name: str) -> dict[str, str]:
    import llama_nb

    environment = {k: v for k, v in os.environ.items() if not k.startswith("IPP_")}
    paths = [str(Path(llama_nb.__file__).parent.parent), environment.get("PYTHONPATH", "")]
    return environment | {
        MARK: state["mark"],
        NAME: name,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def _launch(folder: Path, state: dict[str, Any], name: str) -> subprocess.Popen:
    environment = _environment(state, name)
    command = [sys.executable, "-m"]
    if name == _CONTROLLER:
        command += ["ipyparallel.controller"]
    else:
        rank = state["hosts"].index(name)
        flags = [
            flag
            for flag in environment.get("XLA_FLAGS", "").split()
            if "xla_force_host_platform_device_count" not in flag
        ]
        if state["platform"] == "cpu":
            flags.append(f"--xla_force_host_platform_device_count={state['devices']}")
        environment |= {
            "LLAMA_NB_RANK": str(rank),
            "JAX_PLATFORMS": state["platform"],
            "XLA_FLAGS": " ".join(flags),
        }
        environment.pop("JAX_NUM_CPU_DEVICES", None)
        command += ["ipyparallel.engine", f"--IPEngine.id={rank}", "--timeout=20"]
        command += ["--IPEngine.out_stream_factory=llama_nb.cluster.output.Output"]
    with (folder / "log" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, f"--profile-dir={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal or notebook is not meant for it.
        )
    reap(process)
    write(folder / f"{name}.pid", str(process.pid))
    return process


def _await_controller(folder: Path, process: subprocess.Popen, deadline: float) -> None:
    file = client_file(folder)
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            info = json.loads(file.read_text(encoding="utf-8"))
            socket.create_connection(("127.0.0.1", info["registration"]), timeout=1).close()
            return
        time.sleep(0.1)
    raise InputError(f"the controller did not start; {folder / 'log/controller.log'} says why.")


def _await_engines(folder: Path, state: dict[str, Any], deadline: float) -> None:
    from llama_nb.cluster.client import Client

    hosts = _names(state)[1:]
    left = max(1, deadline - time.monotonic())
    client = Client(client_file(folder), hosts, False, timeout=min(left, 20))
    try:
        client.wait(timeout=left)
    finally:
        client.close()
