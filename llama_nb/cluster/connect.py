"""From a connection file to a client of the cluster that runs behind it."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipyparallel

from llama_nb.cluster.client import Client
from llama_nb.cluster.folder import client_file, default_folder, folder_of, read
from llama_nb.cluster.table import MismatchError, Table
from llama_nb.errors import CorruptFileError, InputError, MissingFileError


def connect(
    file: str | os.PathLike | None = None,
    *,
    profile: str | None = None,
    hosts: int | Sequence[str] | None = None,
    timeout: float = 60,
    local: bool = False,
) -> Client:
    """Return a client of a running cluster, once its engines are there; `%%px` then goes to it.

    Parameters
    ----------
    file
        The controller's connection file for clients (`ipcontroller-client.json`); by default that
        of the cluster on this machine.
    profile
        Name of an IPython profile whose controller is meant, instead of a file.
    hosts
        How many hosts to wait for, or their names. The cluster on this machine knows its own.
    timeout
        Seconds to wait for them.
    local
        Make this notebook's process the first of the mesh: `%%px --local` then runs a cell there,
        too. No engine may run on this host, since chips have one owner.

    Raises
    ------
    LlamaError
        In one sentence: no cluster, a connection file of one that is gone, engines missing, or
        engines of another Python.
    """
    path = _find(file, profile)
    here = local_state(path)
    expected = list(here["hosts"]) if here else []
    if hosts is not None and not isinstance(hosts, int):
        expected = list(hosts)
    if here and here["notebook"] != local:
        engines = "without an engine for its first host" if here["notebook"] else "with all engines"
        raise InputError(
            f"this cluster was started {engines}; connect(local={here['notebook']}) fits it."
        )
    _answers(path)
    try:
        client = Client(path, expected, local, timeout=min(timeout, 10))
    except (TimeoutError, ipyparallel.error.TimeoutError):
        raise InputError(
            f"what listens where {path} says does not answer to its key; the file belongs to "
            "another controller: fetch that of the one that runs now."
        ) from None
    except (KeyError, ValueError):
        raise CorruptFileError(f"{path} is no connection file of ipyparallel.") from None
    try:
        count = hosts - local if isinstance(hosts, int) else None
        rows = client.wait(count, timeout).rows
        _same_python(rows)
        _one_owner(client, rows)
    except BaseException:
        client.close()
        raise
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        client.activate()
    return client


def local_state(file: Path) -> dict[str, Any] | None:
    """Return what a cluster on this machine is, if the file is its."""
    folder = folder_of(file)
    return None if folder is None else read(folder)


def _find(file: str | os.PathLike | None, profile: str | None) -> Path:
    if file is not None and profile is not None:
        raise InputError("give a connection file or a profile, not both.")
    if profile is not None:
        from IPython.paths import get_ipython_dir

        path = Path(get_ipython_dir()) / f"profile_{profile}/security/ipcontroller-client.json"
    elif file is not None:
        path = Path(file).expanduser()
    else:
        path = client_file(default_folder())
    if not path.is_file():
        start = " start one with: python -m llama_nb.cluster start" if file is None else ""
        raise MissingFileError(f"no cluster runs: there is no connection file {path}.{start}")
    return path.resolve()


def _answers(path: Path) -> None:
    """Raise unless something listens where a connection file says."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        address, port = info["interface"].partition("://")[2], info["registration"]
        tunnel = info.get("ssh")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptFileError(f"{path} is no connection file of ipyparallel.") from None
    if tunnel:
        return
    try:
        socket.create_connection((address, port), timeout=10).close()
    except OSError as error:
        raise InputError(
            f"the connection file {path} is stale: nobody listens at {address}:{port} "
            f"({error.strerror or error}); start the cluster again."
        ) from None


def _same_python(rows: list[dict[str, Any]]) -> None:
    ours = ".".join(map(str, sys.version_info[:2]))
    for row in rows:
        theirs = row.get("python", ours).rpartition(".")[0]
        if "python" in row and theirs != ours:
            raise MismatchError(
                f"this notebook runs Python {ours} and {row['host']} {theirs}; they can't send "
                f"each other functions: choose the same for both.\n{Table(rows)}"
            )


def _one_owner(client: Client, rows: list[dict[str, Any]]) -> None:
    """Refuse an engine beside a notebook that is to own its host's chips."""
    if not client.local:
        return
    for row in rows[1:]:
        same = row.get("machine") == rows[0]["machine"] and row["address"] == rows[0]["address"]
        if same and not row["platforms"].startswith("cpu"):
            raise InputError(
                f"engine {row['engine']} runs on this notebook's own host, and chips have one "
                "owner: stop it, or connect with local=False and leave JAX to the engines."
            )
