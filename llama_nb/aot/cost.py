"""What a compiled program costs on one device, and what a deeper one would."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb import compat, hlo
from llama_nb.aot.programs import Program
from llama_nb.topology import Topology


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the compiler found, per device.

    Where nothing fits, all but the first are None; where jaxlib can't print the program, its
    schedule.
    """

    arguments: int
    temporaries: int | None = None
    schedule: hlo.Schedule | None = None


# Collectives on SparseCores carry no estimate, and older jaxlibs can't print them.
_READABLE = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": False
    for kind in ("all_reduce", "all_gather", "reduce_scatter")
}


def measure(program: Program, where: Topology) -> tuple[Cost, str]:
    """Compile a program for a slice; return what it costs, and its text ("" if it doesn't fit)."""
    lowered = program.function.lower(*program.arguments, **program.options)
    try:
        options = _READABLE if where.kind.sparse and compat.SPARSECORE_OPTIONS else None
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Cost(shard_bytes(program.arguments)), ""
    memory = compiled.memory_analysis()
    # What is returned takes room as well, but for what is written in place.
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    held = (memory.argument_size_in_bytes, memory.temp_size_in_bytes + extra)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # jaxlib 0.10 on some overlapped collectives; 0.12 can.
        return Cost(*held), ""
    return Cost(*held, hlo.schedule(text)), text


def extended(layers: int, depths: tuple[int, ...], costs: list[Cost]) -> Cost:
    """Return the cost of a deeper model: layers are alike, so each adds the same.

    Or adds nothing: temporaries of one layer serve the next, and may even be fewer in a deeper
    program.
    """
    (low, high), (small, large) = depths, costs

    def grown(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return None
        if isinstance(a, dict):
            return {key: grown(a.get(key, 0), b.get(key, 0)) for key in {**a, **b}}
        if dataclasses.is_dataclass(a):
            return type(a)(**grown(vars(a), vars(b)))
        return max(a, b) + max(0, b - a) * (layers - high) // (high - low)

    return grown(small, large)


def shard_bytes(tree: Any) -> int:
    """Return the bytes of each device's part of all arrays of a tree."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        place = getattr(leaf, "sharding", None)
        shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
        width = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        return math.prod(shape) * width

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
