"""A client that knows its hosts by name."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_nb.cluster import engine
from llama_nb.cluster.folder import folder_of
from llama_nb.cluster.table import Table
from llama_nb.errors import InputError, MissingDependencyError

try:
    import ipyparallel
except ImportError:
    raise MissingDependencyError(
        "many hosts are driven with ipyparallel, which is not installed: "
        "pip install 'llama_nb[cluster]'."
    ) from None

_SOURCE = Path(engine.__file__).read_text(encoding="utf-8")


class Client(ipyparallel.Client):
    """ipyparallel's client, which also says by name which host has died.

    Attributes
    ----------
    file
        The connection file.
    expected
        Names of the hosts that should be there, as far as known.
    names
        Host names by engine number; those of engines that are gone, too.
    gone
        Names of hosts whose engine died, first the one that died first.
    local
        Whether the notebook's own process is one of the mesh: its first.
    """

    def __init__(self, file: Path, expected: Sequence[str], is_local: bool, timeout: float):
        self.file, self.expected, self.local = file, list(expected), is_local
        self.names: dict[int, str] = {}
        self.gone: list[str] = []
        self.expects_losses = False
        super().__init__(str(file), timeout=timeout)

    @property
    def controller(self) -> str:
        """The controller's address, as the connection file gives it."""
        return json.loads(self.file.read_text(encoding="utf-8"))["interface"].partition("://")[2]

    @property
    def anew(self) -> str:
        """What to do for a new engine on every host: only this machine's cluster can do it here."""
        if folder_of(self.file):
            return "call cluster.restart(client) and join again"
        tool = "cluster/tpu.sh restart (or hosts.sh)"
        return f"run {tool} on your own machine, connect and join again"

    def ask(self, function: str, *, timeout: float, **arguments: Any) -> list[dict[str, Any]]:
        """Call a function of `engine` everywhere and return its answers.

        The notebook's own answer comes first where it is part of the mesh. An engine that doesn't
        answer in time gives its name and `busy`.
        """
        calls = {number: self.send(function, number, **arguments) for number in self.ids}
        rows = []
        if self.local:
            rows.append({**getattr(engine, function)(**arguments), "engine": None})
            if self.expected:
                rows[0].update(host=self.expected[0], rank=0)
        return rows + self.collect(calls, timeout)

    def send(self, function: str, number: int, **arguments: Any) -> Any:
        """Call a function of `engine` on one engine and don't wait."""
        # As text: code objects of another Python could not be read there.
        call = f"(lambda n: (exec({_SOURCE!r}, n), n[{function!r}](**{arguments!r}))[1])"
        text = f"{call}({{'__name__': 'llama_nb.cluster.engine'}})"
        return self[number].apply_async(eval, text)

    def collect(self, calls: dict[int, Any], timeout: float) -> list[dict[str, Any]]:
        """Return what `send` brought, with each engine's number and host name."""
        deadline, rows = time.monotonic() + timeout, []
        for number, call in calls.items():
            try:
                row = call.get(timeout=max(0.01, deadline - time.monotonic()))
            except (TimeoutError, ipyparallel.error.TimeoutError):
                row = {"busy": True}
            except ipyparallel.error.RemoteError as error:
                if error.ename != "EngineError":
                    raise
                row = {"busy": True, "error": "its engine died"}
            row = row if isinstance(row, dict) else {"value": row}
            if "host" in row:
                self.names[number] = row["host"]
            rows.append({"host": self.name(number), "rank": None, **row, "engine": number})
        return rows

    def name(self, number: int) -> str:
        """Return the name of an engine's host."""
        return self.names.get(number, f"engine {number}")

    def wait(self, count: int | None = None, timeout: float = 60) -> Table:
        """Wait for engines and learn their hosts' names.

        Raises
        ------
        InputError
            When some are missing at the end; those expected by name are named.
        """
        wanted = count if count is not None else max(1, len(self.expected)) - self.local
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            # Engines that died long ago may still be listed, until the controller misses them.
            rows = (
                [] if len(self.ids) < wanted else self.ask("facts", timeout=max(2, min(10, left)))
            )
            rows = [row for row in rows if "error" not in row]
            silent = sum(row.get("busy", False) for row in rows)
            missing = set(self.expected) - {row["host"] for row in rows}
            if len(rows) - self.local >= wanted and len(missing) <= silent:
                return Table(rows)
            if left <= 0:
                break
            time.sleep(0.1)
        there = [row["host"] for row in rows or self.ask("facts", timeout=2)]
        missing = [name for name in self.expected if name not in there]
        raise InputError(
            f"{len(there)} of {wanted + self.local} hosts are there after {timeout:.0f} s"
            + (f" ({', '.join(there)})" if there else "")
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + f"; the engines' logs are {self._logs}."
        )

    @property
    def _logs(self) -> str:
        folder = folder_of(self.file)
        return f"in {folder / 'log'}" if folder else "on their hosts"

    # ipyparallel calls these two from a thread of its own when the controller tells of a death.
    def _unregister_engine(self, msg: dict[str, Any]) -> None:
        number = int(msg["content"]["id"])
        if number in self._engines and not self.expects_losses:
            name, first = self.name(number), not self.gone
            self.gone.append(name)
            print(
                f"{name} is gone: its engine (number {number}) died."
                + (
                    " Hosts that compute together with it wait in vain; JAX ends them when it has "
                    f"not heard of it for some time. Then {self.anew}."
                    if first
                    else ""
                ),
                file=sys.stderr,
                flush=True,
            )
        super()._unregister_engine(msg)

    def _handle_stranded_msgs(self, eid: int, uuid: str) -> None:
        # As ipyparallel does, with the host's name instead of the engine's number alone.
        for task in [t for t in self._outstanding_dict[uuid] if t not in self.results]:
            try:
                raise ipyparallel.error.EngineError(
                    f"{self.name(eid)} (engine {eid}) died while it ran this"
                )
            except ipyparallel.error.EngineError:
                content = ipyparallel.error.wrap_exception()
            message = self.session.msg("apply_reply", content=content)
            message["parent_header"]["msg_id"] = task
            message["metadata"]["engine"] = uuid
            self._handle_apply_reply(message)
