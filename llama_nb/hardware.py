"""What a machine can do at most: as makers print it, or as measured here."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb.devices import machine_memory


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at most, as its maker says (or as `measure` finds).

    Attributes
    ----------
    name
        As people call it.
    flops
        Dense bfloat16 FLOPs per second.
    bandwidth
        Bytes per second between the main memory and the chip.
    capacity
        Bytes of that memory.
    source
        Where the numbers are from.
    int8
        Dense 8-bit integer operations per second; None where the maker gives no number.
    """

    name: str
    flops: float
    bandwidth: float
    capacity: float
    source: str
    int8: float | None = None

    @property
    def ridge(self) -> float:
        """FLOPs per byte at which arithmetic and memory take equally long."""
        return self.flops / self.bandwidth


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)

# Peaks without sparsity; NVIDIA's pages of the Hopper chips give twice that, "with sparsity". The
# GPUs are the SXM modules. v7x's page names an FP8 peak (4,614 TFLOP/s), and none for int8; v5p's
# int8 peak is that of JAX's "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus), for its
# page has none. Capacities of TPUs are in GiB, as v7x's page has those of v5p, v6e and v7x; the
# compiler lets a program use 15.75 GiB of v5e's 16. NVIDIA's are read as printed, in GB.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("TPU v4", 275e12, 1200e9, 32 * 2**30, _TPU + "v4", int8=275e12),
        Chip("TPU v5e", 197e12, 819e9, 16 * 2**30, _TPU + "v5e", int8=393e12),
        Chip("TPU v5p", 459e12, 2765e9, 95 * 2**30, _TPU + "v5p", int8=918e12),
        Chip("TPU v6e", 918e12, 1638e9, 32 * 2**30, _TPU + "v6e", int8=1836e12),
        Chip("TPU v7x", 2307e12, 7380e9, 192 * 2**30, _TPU + "tpu7x"),
        Chip("A100", 312e12, 2039e9, 80e9, _A100, int8=624e12),
        Chip("H100", 989.5e12, 3350e9, 80e9, _NVIDIA + "h100/", int8=1979e12),
        Chip("H200", 989.5e12, 4800e9, 141e9, _NVIDIA + "h200/", int8=1979e12),
    )
}

# What JAX calls them; where one name begins another, the longer comes first.
_KINDS = {
    "TPU v4": "TPU v4",
    "TPU v5 lite": "TPU v5e",
    "TPU v5": "TPU v5p",
    "TPU v6": "TPU v6e",
    "TPU7x": "TPU v7x",
    "A100": "A100",
    "H100": "H100",
    "H200": "H200",
}


def here() -> Chip:
    """Return the device that JAX uses: as its maker says where that is known, else measured."""
    kind = jax.devices()[0].device_kind
    for mark, name in _KINDS.items():
        if mark in kind:
            return CHIPS[name]
    return measure()


def measure(repeats: int = 5) -> Chip:
    """Measure the device that JAX uses: how fast it reads memory, and multiplies matrices.

    A matrix too large for any cache times a vector shows the bandwidth, a product of two square
    matrices the peak; the best of `repeats` counts. Numbers are float32 on a CPU, bfloat16
    elsewhere. Takes a second or two.
    """
    cpu = jax.default_backend() == "cpu"
    dtype, rows, side = (jnp.float32, 2**16, 2048) if cpu else (jnp.bfloat16, 2**18, 8192)
    product = jax.jit(lambda a, b: a @ b)
    tall, vector = jnp.ones((rows, 1024), dtype), jnp.ones((1024,), dtype)
    bandwidth = tall.nbytes / best_seconds(lambda: product(tall, vector), repeats + 1)
    square = jnp.ones((side, side), dtype)
    flops = 2 * side**3 / best_seconds(lambda: product(square, square), repeats + 1)
    return Chip(
        name="this machine",
        flops=flops,
        bandwidth=bandwidth,
        capacity=memory_bytes(),
        source=f"measured, {jnp.dtype(dtype).name}, on {jax.devices()[0].device_kind}",
    )


def best_seconds(call: Callable[[], Any], repeats: int = 6) -> float:
    """Return the least time that a call takes until its arrays are there.

    The first of the calls may compile: with two or more, that does not count.
    """
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def memory_bytes(device: jax.Device | None = None) -> float:
    """Return the bytes that a device offers; those of a CPU are the machine's.

    What JAX's allocator may take where that is known, else what the maker says. Where a container
    has less than the machine, that counts.

    Parameters
    ----------
    device
        By default the first.
    """
    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    for mark, name in _KINDS.items():
        if mark in device.device_kind:
            return CHIPS[name].capacity
    return float(machine_memory() or "nan")
