"""Which processor JAX should look for, decided before JAX is imported."""

import os
import sys
from pathlib import Path

# Where Linux shows TPU chips and NVIDIA GPUs.
_ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")


def has_accelerator() -> bool:
    """Return whether a TPU or GPU is attached to this machine."""
    return any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)


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
