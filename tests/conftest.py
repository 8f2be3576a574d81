"""What all tests share: JAX on the CPU, unless the environment names another platform."""

import os

from book import build  # noqa: F401  (first: it notes the environment for the notebooks' kernels)
from llama_nb import devices

os.environ.setdefault("JAX_PLATFORMS", "cpu")
devices.virtual_cpu_devices(8)
