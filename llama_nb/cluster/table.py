"""Who is there, and whether they can work together."""

import dataclasses
from typing import TYPE_CHECKING, Any

from llama_nb.errors import InputError

if TYPE_CHECKING:
    from llama_nb.cluster.client import Client

_VERSIONS = ("python", "jax", "jaxlib", "libtpu", "llama_nb")


class MismatchError(InputError):
    """Hosts run different versions; the table is part of the message."""


@dataclasses.dataclass(frozen=True)
class Table:
    """One row per host, in the order of their processes.

    Attributes
    ----------
    rows
        What `engine.facts` says; of a host that didn't answer only its name and `busy`.
    """

    rows: list[dict[str, Any]]

    def __repr__(self) -> str:
        head = ("host", "engine", "process", "devices", *_VERSIONS)
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def check(self) -> None:
        """Refuse hosts that don't run the same.

        Raises
        ------
        MismatchError
            When versions differ, or the package's sources do.
        """
        there = [row for row in self.rows if not row.get("busy")]
        for what in _VERSIONS:
            found: dict[str, list[str]] = {}
            for row in there:
                # Python's third number changes nothing that they tell each other.
                value = row[what].rpartition(".")[0] if what == "python" else row[what]
                found.setdefault(value, []).append(row["host"])
            if len(found) > 1:
                listed = "; ".join(f"{v or 'none'} on {_some(on)}" for v, on in found.items())
                mend = "copy it to all hosts" if what == "llama_nb" else "install the same on all"
                raise MismatchError(f"the hosts have different {what} ({listed}); {mend}.\n{self}")


def table(client: "Client", timeout: float = 5) -> Table:
    """Return what every host says of itself.

    Parameters
    ----------
    client
        From `connect`.
    timeout
        Seconds; a host that needs longer is still running something else, and is shown as busy.
    """
    rows = client.ask("facts", timeout=timeout, controller=client.controller)
    return Table(sorted(rows, key=_order))


def _order(row: dict[str, Any]) -> tuple[int, int]:
    rank, engine = row.get("rank"), row["engine"]
    return (engine if rank is None else rank, -1 if engine is None else engine)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    engine = "notebook" if row["engine"] is None else str(row["engine"])
    if row.get("busy"):
        return (row["host"], engine, "busy", "", *[""] * len(_VERSIONS))
    process = "-" if row["process"] is None else str(row["process"])
    local, whole, kind = row["devices"] or (None, None, None)
    devices = "-" if local is None else f"{local} of {whole} {kind}"
    return (row["host"], engine, process, devices, *(row[what] or "-" for what in _VERSIONS))
