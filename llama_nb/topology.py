"""TPU slices by name, as the TPU compiler knows them: no TPU needed, only `libtpu`."""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from llama_nb import compat
from llama_nb.devices import has_accelerator
from llama_nb.errors import InputError
from llama_nb.hardware import CHIPS, Chip

_GIB = 2**30
_NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Several compilers at once, as there is no chip to share.
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One generation of TPU.

    Attributes
    ----------
    chip
        As in `hardware.CHIPS`.
    clock
        Cycles per second. Makers don't print it; it is the peak over what the matrix units of a
        chip do in a cycle (2 x 128^2 x 4 on v5e, x 8 on v4 and v5p; 2 x 256^2 x 4 on v6e, x 8 on
        v7x).
    devices
        That JAX counts per chip; memory, bandwidth and peak are shared among them.
    usable
        Bytes of memory that the compiler lets a program use on each device: what it names when it
        refuses one.
    slices
        Shapes that the compiler accepts and people rent.
    sparse
        Whether the compiler hands collectives to the chip's SparseCores.
    """

    chip: str
    clock: float
    devices: int
    usable: float
    slices: tuple[str, ...]
    sparse: bool = False


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
KINDS = {
    "v4": Kind("TPU v4", 1.05e9, 2, 15.25 * _GIB, _CUBES),
    "v5e": Kind("TPU v5e", 1.5e9, 1, 15.75 * _GIB, _FLAT),
    "v5p": Kind("TPU v5p", 1.75e9, 1, 95.73 * _GIB, _CUBES, sparse=True),
    "v6e": Kind("TPU v6e", 1.75e9, 1, 31.24 * _GIB, _FLAT),
    "tpu7x": Kind("TPU v7x", 2.2e9, 2, 94.74 * _GIB, _CUBES, sparse=True),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its kind, its devices and what one device can do.

    Attributes
    ----------
    name
        Such as "v5e:4x4".
    kind
        Its generation.
    devices
        Objects that stand for the devices; programs are compiled for them, not run.
    description
        What JAX knows of the slice.
    """

    name: str
    kind: Kind
    devices: list[Any]
    description: Any = dataclasses.field(repr=False)

    @property
    def chips(self) -> int:
        """Chips of the slice."""
        return len(self.devices) // self.kind.devices

    @property
    def device(self) -> Chip:
        """What one device has: a chip, or its share of one."""
        chip, share = CHIPS[self.kind.chip], self.kind.devices
        return dataclasses.replace(
            chip,
            flops=chip.flops / share,
            bandwidth=chip.bandwidth / share,
            capacity=self.kind.usable,
            int8=chip.int8 and chip.int8 / share,
        )

    @contextlib.contextmanager
    def target(self, mesh: Mesh | None = None) -> Iterator[None]:
        """Tell Pallas, while a program is traced and lowered, for which chip its kernels are.

        Parameters
        ----------
        mesh
            The program's, of these devices; by default one device is enough.
        """
        if mesh is None:
            mesh = Mesh(np.array(self.devices[:1]), ("chip",), axis_types=(AxisType.Auto,))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            yield


@functools.cache
def get(name: str) -> Topology:
    """Return a slice by name: "v5e:4x4" is sixteen v5e chips.

    Raises
    ------
    InputError
        For a name that is none, naming those there are, and when `libtpu` is missing.
    """
    kind, _, shape = name.partition(":")
    if kind not in KINDS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
        raise InputError(f"there is no TPU topology {name!r}; {_known()}")
    if not has_accelerator():
        # libtpu otherwise asks a cloud that isn't there where it runs, and complains.
        for variable, value in _NOWHERE.items():
            os.environ.setdefault(variable, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise InputError(
            "compiling for TPUs needs the TPU compiler, which is Linux only: "
            "pip install 'llama_nb[pod]' (or libtpu)."
        ) from None
    from jax.experimental import topologies

    compat.allow_compiling_for_descriptions()
    compat.keep_no_programs_for_descriptions()
    # Slices of less than a host: older compilers want to hear so.
    sizes = [int(size) for size in shape.split("x")]
    small = {"chips_per_host_bounds": [*sizes, 1][:3]} if math.prod(sizes) < 4 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **small)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"the TPU compiler refuses {name!r} ({_first(error)}); {_known()}"
        ) from None
    return Topology(name, KINDS[kind], list(found.devices), found)


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")


def _known() -> str:
    return "known: " + "; ".join(f"{k}:{{{','.join(v.slices)}}}" for k, v in KINDS.items()) + "."
