"""From a model's name and a slice's to a report."""

import dataclasses
import time
from typing import Any

from llama_nb import sharding, topology
from llama_nb.aot.cost import Cost, extended, measure, shard_bytes
from llama_nb.aot.programs import PROGRAMS, Program, Step
from llama_nb.aot.report import Report
from llama_nb.aot.shapes import mesh
from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.kernels.choice import choose
from llama_nb.quantize import check_kind
from llama_nb.sharding import Layout
from llama_nb.topology import Topology

PHASES = {"decode": "tp", "prefill": "tp", "train": "fsdp"}  # and the strategy of each
# A layer of these compiles for ten seconds and more, and all layers compile to the same.
_DEEP, _DEPTHS = ("prefill", "train"), (1, 2)


def compile_for(
    name: str,
    config: LlamaConfig,
    *,
    phase: str = "decode",
    batch: int = 8,
    context: int = 2048,
    quant: str | None = None,
    strategy: str | None = None,
    attention: str = "auto",
) -> tuple[Report, str]:
    """Compile one step of a model for a TPU slice.

    Parameters
    ----------
    name
        Of the slice, such as "v5e:4x4".
    phase
        "decode" adds a token to each sequence, "prefill" reads whole prompts into a cache, "train"
        is a step of AdamW with float32 weights and moments.
    batch, context
        Sequences, and slots of the cache, or tokens of each prompt.
    quant
        "int8" for weights and cache; None for bfloat16.
    strategy
        Of `sharding.STRATEGIES`; by default that of `PHASES`.
    attention
        "pallas" or "xla"; "auto" is "pallas" for decode and prefill. Training has no kernel.

    Returns
    -------
    tuple
        The report and the text of the deepest program compiled (empty where it doesn't fit).

    Raises
    ------
    InputError
        For unknown names, numbers below 1, a slice that doesn't divide the model or the batch, and
        a machine without the TPU compiler.
    """
    if phase not in PHASES:
        raise InputError(f"phase {phase!r} is unknown; known: {', '.join(PHASES)}.")
    if min(batch, context) < 1 or context > config.context:
        raise InputError(
            f"a batch of {batch} and a context of {context} were asked for; both must be 1 or more "
            f"and the context at most this model's {config.context}."
        )
    check_kind(quant)
    where = topology.get(name)
    choice = choose(attention, where.devices[0])
    if phase == "train":
        if attention == "pallas":
            raise InputError("training has no kernel for attention; leave --attention out.")
        choice = dataclasses.replace(choice, kind="xla")
    strategy = strategy or PHASES[phase]
    layout = sharding.layout(config, mesh(where, strategy), strategy)
    sharding.check(config, layout, batch)
    step = Step(config, layout, batch, context, quant, choice)
    make = PROGRAMS[phase]
    start = time.perf_counter()
    depths = _DEPTHS if phase in _DEEP and config.num_layers > max(_DEPTHS) else ()
    costs, text = [], ""
    for depth in depths or (config.num_layers,):
        shallow = dataclasses.replace(config, num_layers=depth)
        cost, text = measure(make(dataclasses.replace(step, config=shallow)), where)
        costs.append(cost)
    cost = costs[0] if len(costs) == 1 else extended(config.num_layers, depths, costs)
    seconds = time.perf_counter() - start
    asked = {"batch": batch, "context": context, "quant": quant, "attention": choice.kind}
    return _report(where, phase, layout, make(step), cost, depths, seconds, asked), text


def _report(
    where: Topology,
    phase: str,
    layout: Layout,
    program: Program,
    cost: Cost,
    depths: tuple[int, ...],
    seconds: float,
    asked: dict[str, Any],
) -> Report:
    floor = program.floor(where)
    usable = int(where.kind.usable)
    fits = cost.temporaries is not None and cost.arguments + cost.temporaries <= usable
    plan, device, step = cost.schedule, where.device, None
    if plan is not None and fits:
        step = plan.seconds(where.kind.clock, device.bandwidth, device.flops)
    return Report(
        topology=where.name,
        chips=where.chips,
        phase=phase,
        strategy=layout.strategy,
        mesh=dict(layout.mesh.shape),
        **asked,
        weight_bytes=shard_bytes(program.weights),
        cache_bytes=shard_bytes(program.cache),
        state_bytes=shard_bytes(program.state),
        argument_bytes=cost.arguments,
        temp_bytes=cost.temporaries,
        hbm_bytes=usable,
        fits=fits,
        collectives=plan.collectives if plan else {},
        collective_bytes=plan.collective_bytes if plan else {},
        estimated_step_ms=step and float(f"{step * 1e3:.6g}"),
        roofline_ms=float(f"{floor.seconds * 1e3:.6g}"),
        bound="memory" if floor.memory > floor.compute else "compute",
        tokens_per_s=step and round(program.tokens / max(step, floor.seconds), 1),
        compile_s=round(seconds, 1),
        layers_compiled=list(depths),
    )
