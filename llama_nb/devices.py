"""What this machine has, and which processor JAX should look for: before JAX is imported."""

import contextlib
import os
import sys
from pathlib import Path

# Where Linux shows TPU chips and NVIDIA GPUs.
_ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")
# Where Linux says what a container may take: cgroups of version 2, and of 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def has_accelerator() -> bool:
    """Return whether a TPU or GPU is attached to this machine."""
    return any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)


def machine_memory() -> int | None:
    """Return the bytes of this machine's memory, or of its container's; None on Windows."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            sizes.append(int(Path(file).read_text()))
    return min(sizes)


def prefer_cpu_if_alone(environment: dict[str, str] | None = None) -> None:
    """Set `JAX_PLATFORMS=cpu` where there is nothing better and nothing was said.

    An installed libtpu (it compiles for pods) otherwise searches for a TPU and complains that
    there is none.

    Parameters
    ----------
    environment
        Changed in place; by default this process's.
    """
    environment = os.environ if environment is None else environment
    if "JAX_PLATFORMS" not in environment and sys.platform == "linux" and not has_accelerator():
        environment["JAX_PLATFORMS"] = "cpu"


def virtual_cpu_devices(count: int) -> None:
    """Have the CPU counted as that many devices, if nothing else says how many it is.

    Only before JAX has made its devices; later calls change nothing.
    """
    import jax

    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has its devices already.
        jax.config.update("jax_num_cpu_devices", count)
