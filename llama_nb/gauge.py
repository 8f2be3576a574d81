"""How much memory loading takes, watched while it happens and drawn below the cell."""

import dataclasses
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

from llama_nb import figures, redraw

PERIOD = 0.02  # seconds between looks


@dataclasses.dataclass(frozen=True)
class Look:
    """Memory at one moment.

    Attributes
    ----------
    seconds
        Since the beginning.
    host
        Bytes that belong to this process alone: files in the system's cache are not among them.
    devices
        Bytes in use on all devices; None where they use the host's.
    done
        The share of the parameters that is loaded.
    """

    seconds: float
    host: int
    devices: int | None
    done: float


class Gauge:
    """Pass it as `watch` to what loads weights, inside a `with` block.

    Attributes
    ----------
    looks
        Every `Look` so far. The first is from before the loading.

    Parameters
    ----------
    kept
        Bytes that the weights will take, drawn as a line.
    every
        Least seconds between drawings.
    """

    def __init__(self, kept: float, every: float = 1.0):
        self.looks: list[Look] = []
        self._kept, self._share = kept, 0.0
        self._figure = redraw.Figure(lambda ax: draw(ax, list(self.looks), kept), every)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Gauge":
        self._start = time.monotonic()
        self._look()
        self._figure.__enter__()
        self._thread.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        """Take notice of numbers done and numbers in all."""
        self._share = done / total
        self._figure.redraw()

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self._figure.__exit__(*error)

    @property
    def seconds(self) -> float:
        """From the beginning to the last look."""
        return self.looks[-1].seconds

    @property
    def peak(self) -> int:
        """The most bytes that the host had beyond those it began with."""
        return max(look.host for look in self.looks) - self.looks[0].host

    def _watch(self) -> None:
        while not self._over.wait(PERIOD):
            self._look()

    def _look(self) -> None:
        seconds = time.monotonic() - self._start
        self.looks.append(Look(seconds, host_bytes(), device_bytes(), self._share))


def host_bytes() -> int:
    """Return the bytes of this process that are no file's; elsewhere than on Linux, the most."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(s.split()[1]) for s in lines if s.startswith("RssAnon")) * 1024
    if sys.platform == "win32":
        return 0  # It has no such count without another package.
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def device_bytes() -> int | None:
    """Return the bytes in use on all devices; None where JAX doesn't count them, as on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return sum(each["bytes_in_use"] for each in stats) if all(stats) else None


def draw(ax: Any, looks: list[Look], kept: float) -> None:
    """Draw memory over time, and the bytes that will be kept as a line.

    Parameters
    ----------
    ax
        Matplotlib axes, which are cleared first.
    looks, kept
        As in `Gauge`.
    """
    ax.clear()
    seconds = [look.seconds for look in looks]
    host = [(look.host - looks[0].host) / 1e9 for look in looks]
    ax.plot(seconds, host, color=figures.BLUE, label="host, more than before")
    if looks[-1].devices is not None:
        devices = [look.devices / 1e9 for look in looks]
        ax.plot(seconds, devices, color=figures.GREEN, label="devices")
    loaded = [look.done * kept / 1e9 for look in looks]
    ax.step(seconds, loaded, color=figures.WEIGHTS, ls=":", where="post", label="weights loaded")
    ax.axhline(kept / 1e9, color="black", ls="--", lw=1, label="all weights")
    ax.set(xlabel="seconds", ylabel="GB", ylim=(0, None))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
