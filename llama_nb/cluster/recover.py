"""When a cell went wrong on some host: interrupt, take edited code, begin anew."""

import subprocess
import time
from collections.abc import Sequence

import ipyparallel

from llama_nb.cluster import engine, local
from llama_nb.cluster.client import Client
from llama_nb.cluster.folder import folder_of
from llama_nb.cluster.table import Table
from llama_nb.errors import InputError

_OURS = ("llama_nb.cluster", "llama_nb.errors")  # In use by who reloads.


def interrupt(client: Client, timeout: float = 10) -> list[str]:
    """Interrupt what engines run, as Ctrl-C would.

    Devices don't hear of it: a sum that waits for another host goes on waiting, and what comes next
    waits behind it. What helps is that host running the same, or `restart`.

    Returns
    -------
    list of str
        Hosts that are still busy after `timeout` seconds.
    """
    busy = _busy(client)
    if busy:
        # Not waited for: the answer of an engine that is gone would never come.
        client.send_signal("SIGINT", targets=busy, block=False)
    deadline = time.monotonic() + timeout
    while (busy := _busy(client)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [client.name(number) for number in busy]


def _busy(client: Client) -> list[int]:
    status = client.queue_status()
    return [n for n in client.ids if n in status and (status[n]["queue"] or status[n]["tasks"])]


def reload(client: Client, package: str = "llama_nb") -> dict[str, int]:
    """Import a package's modules anew on every engine, after its files were edited.

    Names that the engines' users gave to its modules, functions and classes point to the new ones;
    objects made before stay what they were.

    Returns
    -------
    dict
        Modules imported, by host.

    Raises
    ------
    InputError
        When a host can't import the new code (it goes on with the old), or is busy.
    """
    calls = {n: client.send("reload", n, package=package) for n in client.ids}
    done = {}
    for number, call in calls.items():
        try:
            done[client.name(number)] = call.get(timeout=60)
        except (TimeoutError, ipyparallel.error.TimeoutError):
            name = client.name(number)
            raise InputError(
                f"{name} is busy, and reloads once it is free; {_reloaded(done)}."
            ) from None
        except Exception as error:  # Whatever the new code raises.
            said = str(error).strip().splitlines()[0]
            raise InputError(
                f"{client.name(number)} can't import the new {package} ({said}) and goes on with "
                f"the old one; {_reloaded(done)}. Mend it and reload again before they compute "
                "together."
            ) from None
    if client.local:
        done["notebook"] = engine.reload(package, keep=_OURS)
    return done


def _reloaded(done: dict[str, int]) -> str:
    return f"{', '.join(done)} had reloaded before" if done else "others may have reloaded"


def restart(client: Client, command: Sequence[str] | None = None, *, timeout: float = 60) -> Table:
    """Give every host a new engine; what the old ones held is lost. Then `join` again.

    Parameters
    ----------
    client
        From `connect`; it stays connected.
    command
        What restarts them, for instance `["cluster/tpu.sh", "restart"]`. The cluster on this
        machine needs none.
    timeout
        Seconds until the new engines must be there.

    Raises
    ------
    InputError
        When there is no command for hosts elsewhere, it fails, or engines don't come back.
    """
    folder = folder_of(client.file)
    if command is None and folder is None:
        raise InputError(
            f"these engines were not started here: {client.anew}; or say what restarts them, "
            "restart(client, [COMMAND, ...])."
        )
    if client.local and engine.facts()["group"] is not None:
        raise InputError(
            "this notebook's process belongs to the group that is to be left: restart the engines "
            "from a shell, then this notebook's kernel."
        )
    old = set(client._engines.values())
    client.expects_losses = True
    try:
        if command is None:
            local.restart(folder)
        else:
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise InputError(f"the engines were not restarted ({error}).") from None
        deadline = time.monotonic() + timeout
        # The controller may need its heartbeats to notice that old ones are gone.
        while old & set(client._engines.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        client.expects_losses = False
    if left := [client.name(n) for n, uuid in client._engines.items() if uuid in old]:
        raise InputError(f"the engines of {', '.join(left)} were not restarted.")
    client.gone.clear()
    client.names.clear()
    return client.wait(timeout=timeout)
