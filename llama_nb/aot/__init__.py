"""Compile a step for TPUs that are not here, and read off what it needs and how long it takes.

    shapes     weights and caches that are shapes only
    programs   the steps, with the shapes of their arguments
    cost       what the compiler makes of one
    report     that, as numbers and as lines to read
    compile    all of it, from names

Nothing is loaded and nothing runs: arrays are shapes with shardings, devices are descriptions.
What comes back is what the TPU compiler decided: bytes per device, collectives, a schedule.
"""

from llama_nb.aot.compile import PHASES, compile_for
from llama_nb.aot.report import PUBLISHED, Report, describe
from llama_nb.aot.shapes import cache_shapes, mesh, param_shapes

__all__ = [
    "PHASES",
    "PUBLISHED",
    "Report",
    "cache_shapes",
    "compile_for",
    "describe",
    "mesh",
    "param_shapes",
]
