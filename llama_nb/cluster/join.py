"""One group of processes out of many hosts: `jax.distributed` everywhere, once."""

import os
import sys
from typing import Any

from llama_nb.cluster import engine
from llama_nb.cluster.client import Client
from llama_nb.cluster.connect import local_state
from llama_nb.cluster.table import Table, table
from llama_nb.errors import InputError

# The port that pods' firewalls open; JAX's own default is not among them since 0.8.1
# (https://github.com/jax-ml/jax/issues/35905).
TPU_PORT = 8476


def join(
    client: Client, *, timeout: int = 60, heartbeat: int = 30, port: int | None = None
) -> Table:
    """Make every host's process one of a group that shares its devices; once is enough.

    The first host's private address is where they meet.

    Parameters
    ----------
    client
        From `connect`.
    timeout
        Seconds until all must have met.
    heartbeat
        Seconds after which a process that says nothing counts as dead. JAX then ends the others,
        whose collectives would wait for ever.
    port
        On the first host; by default a free one, and 8476 on TPUs.

    Returns
    -------
    Table
        With processes and devices.

    Raises
    ------
    MismatchError
        Before anything is done, when versions differ.
    InputError
        When a host is busy, has used JAX alone already, or doesn't get there in time; its name is
        in the sentence.
    """
    before = table(client)
    rows = before.rows
    if not rows:
        raise InputError("no engine is there to join; start some and connect again.")
    if missing := set(client.expected) - {row["host"] for row in rows}:
        raise InputError(
            f"{', '.join(sorted(missing))} is not there; for a new engine on every host, "
            f"{client.anew}."
        )
    if late := [row["host"] for row in rows if row.get("busy")]:
        raise InputError(
            f"{', '.join(late)} still runs something else; wait for it, call "
            f"cluster.interrupt(client), or {client.anew}."
        )
    before.check()
    groups = {tuple(row["group"] or ()) for row in rows}
    if groups != {()}:
        if len(groups) == 1 and groups.pop()[1] == len(rows):
            return before
        there = [row["host"] for row in rows if row["group"]]
        _refuse(client, there, "joined a group with others before")
    if awake := [row["host"] for row in rows if row["awake"]]:
        _refuse(client, awake, "used JAX alone already, and its devices can't be joined any more")
    answers = _call(client, rows, _meeting_point(client, rows, port), timeout, heartbeat)
    pairs = zip(answers, rows, strict=True)
    after = Table([{**row, "engine": old["engine"]} for row, old in pairs])
    seen = {row["devices"][1] for row in after.rows}
    if seen != {sum(row["devices"][0] for row in after.rows)}:
        raise InputError(f"the hosts see different devices; {client.anew}.\n{after}")
    return after


def _refuse(client: Client, hosts: list[str], why: str) -> None:
    raise InputError(f"{', '.join(hosts)} {why}; for new processes, {client.anew}.")


def _meeting_point(client: Client, rows: list[dict[str, Any]], port: int | None) -> str:
    """Return ADDRESS:PORT, free on the first host."""
    first = rows[0]
    if port is None and first["libtpu"] and not first["platforms"].startswith(("cpu", "cuda")):
        port = TPU_PORT
    arguments = {"address": first["address"], "port": port}
    if first["engine"] is None:
        free = engine.free_port(**arguments)
    else:
        call = client.send("free_port", first["engine"], **arguments)
        free = client.collect({first["engine"]: call}, 10)[0].get("value", 0)
    if not free:
        raise InputError(
            f"port {port} of {first['host']} ({first['address']}) is in use; choose another with "
            "join(client, port=...)."
        )
    return f"{first['address']}:{free}"


def _call(
    client: Client, rows: list[dict[str, Any]], place: str, timeout: int, heartbeat: int
) -> list[dict[str, Any]]:
    """Call all at once, since none returns before all are there."""
    shared = {"coordinator": place, "count": len(rows), "timeout": timeout, "heartbeat": heartbeat}
    calls = {
        row["engine"]: client.send("join", row["engine"], rank=rank, **shared)
        for rank, row in enumerate(rows)
        if row["engine"] is not None
    }
    answers = []
    if client.local:
        here = local_state(client.file)
        if here is not None and "jax" not in sys.modules:
            os.environ["JAX_PLATFORMS"] = here["platform"]
        mine = engine.join(rank=0, devices=here and here["devices"], **shared)
        answers.append({**mine, "host": rows[0]["host"], "rank": 0})
    # Engines stop by themselves; a little later than asked for, as the first must hear of it.
    answers += client.collect(calls, timeout + 15)
    bad = {
        row["host"]: answer.get("error", f"no answer in {timeout} s")
        for row, answer in zip(rows, answers, strict=True)
        if answer.get("busy") or "error" in answer
    }
    if bad:
        said = "; ".join(f"{host}: {why}" for host, why in bad.items())
        raise InputError(
            f"the hosts did not meet at {place} ({said}); see that they reach each other there, "
            f"then {client.anew}."
        )
    return answers
