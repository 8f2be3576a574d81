"""Options that several commands have."""

import argparse
import math
from typing import TYPE_CHECKING

from llama_nb.devices import virtual_cpu_devices

if TYPE_CHECKING:
    from jax.sharding import Mesh


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add which model, and in how many bits."""
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="NAME|DIR|FILE.gguf",
        help="default: smollm2-135m, fetched once",
    )
    parser.add_argument("--quant", choices=["int8"], help="keep the matrices in int8")


def add_mesh(parser: argparse.ArgumentParser, strategy: str) -> None:
    """Add over which devices, and how."""
    parser.add_argument("--mesh", metavar="DATAxMODEL", help="split over devices, such as 2x4")
    parser.add_argument(
        "--strategy",
        default=strategy,
        metavar="S",
        help=f"how: dp, tp, 2d, fsdp, fsdp_tp ({strategy})",
    )


def mesh_of(options: argparse.Namespace) -> "Mesh | None":
    """Return the mesh that was asked for; on a CPU its devices are made."""
    if options.mesh is None:
        return None
    from llama_nb import sharding

    shape = sharding.mesh_shape(options.mesh)
    virtual_cpu_devices(math.prod(shape))
    return sharding.make_mesh(shape)
