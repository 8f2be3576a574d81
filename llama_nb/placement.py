"""What fits where: how many bits, over how many devices, and how long a conversation."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb import hardware, sharding
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.quantize import int8_bytes

# Tokens: more cost memory that few conversations use. On a CPU a step reads all that is set aside.
LONGEST = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
SHORTEST = 256
SMALL = 2e9  # bytes of float32 weights that a CPU reads fast enough as they are

# Bytes on each device for a prompt on its way through the layers, and for programs.
_WORK = 1e9
# How much of the memory a model may take: a CPU shares its own with everything else.
_SHARE = {"cpu": 0.8, "gpu": 0.9, "tpu": 0.9}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What JAX sees of a machine.

    Attributes
    ----------
    kind
        "tpu", "gpu" or "cpu".
    count
        Devices. Those of a CPU are virtual.
    memory
        Bytes of each device; of a CPU, all the bytes there are, however many its devices.
    name
        As the maker calls a device.
    """

    kind: str
    count: int
    memory: float
    name: str = ""

    def __str__(self) -> str:
        name = self.name or self.kind.upper()
        share = "in all" if self.kind == "cpu" else "each"
        return f"{self.count} x {name}, {self.memory / 1e9:.1f} GB {share}"


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a model will lie on a machine.

    Attributes
    ----------
    quant, dtype
        As `loading.load` takes them.
    mesh
        Sizes of the axes (data, model); None for one device.
    capacity
        Tokens of a conversation, prompt and answers together.
    weights, cache
        Bytes of all devices together.
    why
        The choice in one sentence.
    """

    quant: str | None
    dtype: str
    mesh: tuple[int, int] | None
    capacity: int
    weights: float
    cache: float
    why: str

    @property
    def chips(self) -> int:
        """Devices that take part."""
        return math.prod(self.mesh or (1,))

    def options(self) -> dict[str, Any]:
        """Return what `loading.load` and `loading.build` are to be told; makes the mesh."""
        mesh = None if self.mesh is None else sharding.make_mesh(self.mesh)
        return {"quant": self.quant, "dtype": jnp.dtype(self.dtype), "mesh": mesh}


def look() -> Machine:
    """Return what JAX sees here."""
    first = jax.local_devices()[0]
    return Machine(
        kind=jax.default_backend(),
        count=jax.local_device_count(),
        memory=hardware.memory_bytes(first),
        name=first.device_kind,
    )


def place(config: LlamaConfig, machine: Machine, longest: int | None = None) -> Placement:
    """Return how a model should lie on a machine; a pure function.

    On TPU and GPU weights are bfloat16 where they fit and int8 where not. On a CPU they are float32
    where they are few; else int8, because there a token takes as long as reading its weights. All
    devices of a host take part, as many as a power of two says: the model axis of the mesh gets up
    to four of them and the data axis the rest, which also splits D (strategy "2d").

    Parameters
    ----------
    longest
        Tokens of the longest conversation that is wanted, `LONGEST` if nothing is said. It is
        halved until it fits.

    Raises
    ------
    InputError
        When not even int8 weights and a short conversation fit.
    """
    cpu = machine.kind == "cpu"
    devices = 1 << (machine.count.bit_length() - 1)
    mesh = None if devices == 1 else (devices // min(devices, 4), min(devices, 4))
    parts = 1 if cpu else devices
    room = parts * (_SHARE[machine.kind] * machine.memory - _WORK)
    room = math.inf if math.isnan(room) else room  # Windows does not say.
    per_token = config.cache_bytes_per_token(4 if cpu else 2)
    for quant, dtype, weights in _forms(config, cpu):
        capacity = min(longest or LONGEST[machine.kind], config.context)
        while capacity > SHORTEST and weights + capacity * per_token > room:
            capacity = max(SHORTEST, capacity // 2)
        cache = capacity * per_token
        if weights + cache <= room:
            over = f", split over a mesh of {mesh[0]}x{mesh[1]}" if mesh else ""
            why = (
                f"{_reason(config, cpu, quant, room)}{over}; beside {weights / 1e9:.2f} GB of "
                f"weights a conversation of {capacity:,} tokens takes {cache / 1e9:.2f} GB."
            )
            return Placement(quant, dtype, mesh, capacity, weights, cache, why)
    raise InputError(
        f"{config.param_count() / 1e9:.1f} billion parameters take {weights / 1e9:.1f} GB even in "
        f"int8, and of {machine} a model can have {max(room, 0) / 1e9:.1f} GB; take a machine with "
        "more memory, or a smaller model."
    )


def _forms(config: LlamaConfig, cpu: bool) -> list[tuple[str | None, str, float]]:
    """Return what weights may be, best first: quant, dtype, bytes."""
    count = config.param_count()
    int8 = ("int8", "float32" if cpu else "bfloat16", float(int8_bytes(config)))
    if not cpu:
        return [(None, "bfloat16", 2.0 * count), int8]
    return [(None, "float32", 4.0 * count), int8] if 4 * count <= SMALL else [int8]


def _reason(config: LlamaConfig, cpu: bool, quant: str | None, room: float) -> str:
    wide = 2 * config.param_count()
    if quant is None:
        return "float32, as the model is small" if cpu else "bfloat16, as the model was published"
    if cpu:
        return "int8, because a CPU takes as long for a token as for reading the weights"
    return f"int8, because {wide / 1e9:.2f} GB of bfloat16 exceed the {room / 1e9:.2f} GB to be had"
