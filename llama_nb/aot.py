"""Compile a step for TPUs that are not here, and read off what it needs and how long it takes.

Nothing is loaded and nothing runs: arrays are shapes with shardings, devices are descriptions.
What comes back is what the TPU compiler decided: bytes per device, collectives, a schedule.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llama_nb import cache as caches
from llama_nb import compat, hlo, pod, roofline, sharding, topology
from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig
from llama_nb.data.packing import Batch
from llama_nb.errors import InputError
from llama_nb.kernels.choice import Choice, choose
from llama_nb.model import Llama, params_of
from llama_nb.quantize import SHARED_AXES, check_kind, quantize
from llama_nb.sampling import Sampling
from llama_nb.session import decode_step, prefill
from llama_nb.sharding import Layout
from llama_nb.topology import Topology
from llama_nb.train import train_step

PHASES = {"decode": "tp", "prefill": "tp", "train": "fsdp"}  # and the strategy of each
_DTYPE = jnp.bfloat16
# A layer of these compiles for ten seconds and more, and all layers compile to the same.
_DEEP, _DEPTHS = ("prefill", "train"), (1, 2)


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one step, per device.

    Attributes
    ----------
    topology, chips, phase, strategy, mesh, batch, context, quant, attention
        What was compiled, and for what; batch and context are those of the whole slice.
    weight_bytes, cache_bytes, state_bytes
        What the step is given: weights, KV cache, an optimizer's moments.
    argument_bytes
        All arguments, as the compiler lays them out.
    temp_bytes
        What the step needs besides; None where the compiler refused it.
    hbm_bytes
        What the compiler lets a program use.
    fits
        Whether it does.
    collectives, collective_bytes
        How often devices talk in a step, and the bytes of the results, by kind.
    estimated_step_ms
        The compiler's own schedule, added up: a model, not a measurement. None if it doesn't fit,
        or if this jaxlib can't print the program. Collectives and bytes fetched ahead carry no
        estimate, so that it may lie below the roofline.
    roofline_ms, bound
        What no program can beat (`roofline.floor`), and by what.
    tokens_per_s
        New (or trained) tokens of all sequences per second, by the estimate or the roofline,
        whichever is slower.
    compile_s
        Seconds to trace, lower and compile, here.
    layers_compiled
        Empty where the whole model was. Otherwise the depths from which the rest was extended:
        layers are alike, so each adds the same.
    """

    topology: str
    chips: int
    phase: str
    strategy: str
    mesh: dict[str, int]
    batch: int
    context: int
    quant: str | None
    attention: str
    weight_bytes: int
    cache_bytes: int
    state_bytes: int
    argument_bytes: int
    temp_bytes: int | None
    hbm_bytes: int
    fits: bool
    collectives: dict[str, int]
    collective_bytes: dict[str, int]
    estimated_step_ms: float | None
    roofline_ms: float
    bound: str
    tokens_per_s: float | None
    compile_s: float
    layers_compiled: list[int]


@dataclasses.dataclass(frozen=True)
class Program:
    """A step to be compiled.

    Attributes
    ----------
    function, arguments, options
        A jitted function, the shapes of its arguments, and its static options.
    weights, cache, state
        Which of the arguments are weights, cache and an optimizer's state.
    floor
        The step's least time on a slice.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    weights: Any
    cache: Any
    state: Any
    floor: Callable[[Topology], roofline.Floor]
    tokens: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the compiler found, per device.

    Where nothing fits, all but the first are None; where jaxlib can't print the program, those
    that are read off its text.
    """

    arguments: int
    temporaries: int | None = None
    cycles: int | None = None
    kernel_bytes: int | None = None
    kernel_flops: int | None = None
    collectives: dict[str, int] | None = None
    collective_bytes: dict[str, int] | None = None


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
    make = functools.partial(
        _PROGRAMS[phase], layout=layout, batch=batch, context=context, quant=quant, choice=choice
    )
    start = time.perf_counter()
    depths = _DEPTHS if phase in _DEEP and config.num_layers > max(_DEPTHS) else ()
    costs, text = [], ""
    for depth in depths or (config.num_layers,):
        cost, text = _cost(make(dataclasses.replace(config, num_layers=depth)), where)
        costs.append(cost)
    cost = costs[0] if len(costs) == 1 else _at(config.num_layers, depths, costs)
    seconds = time.perf_counter() - start
    asked = {"batch": batch, "context": context, "quant": quant, "attention": choice.kind}
    return _report(where, phase, layout, make(config), cost, depths, seconds, asked), text


# The estimate for a public 70B step on v5e:4x4, over what its authors measured (ms), at three sizes
# whose cache is full: (8, 2048), (16, 2048) and (64, 2048).
PUBLISHED = ((7.12, 6.29), (8.23, 7.41), (14.37, 14.56))


def describe(model: str, report: Report) -> str:
    """Return a report as lines to read."""

    def size(count: int | None) -> str:
        return "does not fit" if count is None else f"{count / 1e9:.3f} GB"

    axes = " x ".join(f"{name} {length}" for name, length in report.mesh.items())
    numbers = report.quant or ("bfloat16" if report.phase != "train" else "float32, AdamW")
    rows = [
        ("step", f"{report.phase}, batch {report.batch}, context {report.context}, {numbers}"),
        ("chips", f"{report.chips} ({report.topology}); {report.strategy} on {axes}"),
        ("attention", {"pallas": "a Pallas kernel", "xla": "XLA's"}[report.attention]),
        ("weights", size(report.weight_bytes)),
        ("cache", size(report.cache_bytes)),
        *([("optimizer", size(report.state_bytes))] if report.state_bytes else []),
        ("all arguments", size(report.argument_bytes)),
        ("temporaries", size(report.temp_bytes)),
        ("usable memory", f"{size(report.hbm_bytes)}: {'fits' if report.fits else 'DOES NOT FIT'}"),
    ]
    for kind, count in report.collectives.items():
        rows.append((kind, f"{count} a step, {report.collective_bytes[kind] / 1e6:.2f} MB"))
    if report.estimated_step_ms is not None:
        ratio = report.estimated_step_ms / report.roofline_ms
        rows += [
            ("estimated step", f"{report.estimated_step_ms:.3f} ms, {ratio:.2f} of the roofline's"),
            ("tokens per second", f"{report.tokens_per_s:,.0f}, all sequences"),
        ]
    elif report.fits:
        rows.append(("estimated step", "unknown: this jaxlib can't print the program; 0.12 can"))
    rows.append(("roofline", f"{report.roofline_ms:.3f} ms, bound by {report.bound}"))
    depth = ""
    if report.layers_compiled:
        depth = f" ({' and '.join(map(str, report.layers_compiled))} layers; the rest are alike)"
    rows.append(("compiled in", f"{report.compile_s:.1f} s{depth}"))
    width = max(len(name) for name, _ in rows)
    ratios = ", ".join(f"{ours / theirs:.2f}" for ours, theirs in PUBLISHED)
    return "\n".join(
        [
            f"{model}, per device",
            *(f"  {name:<{width}}  {text}" for name, text in rows),
            "The estimate adds up the compiler's schedule: a model, in which collectives and what",
            "is fetched ahead are free, and kernels as fast as their bytes and FLOPs allow.",
            "Expect the longer of it and the roofline, or more.",
            f"For a public 70B step on v5e:4x4 it is {ratios} times what its authors measured.",
        ]
    )


def mesh(where: Topology, strategy: str) -> Mesh:
    """Return the mesh (data, model) of a slice: all devices on the axis that a strategy uses most.

    Strategies with both axes get the squarest mesh, `model` the longer side.
    """
    count = len(where.devices)
    if strategy in ("2d", "fsdp_tp"):
        data = max(n for n in range(1, count + 1) if count % n == 0 and n * n <= count)
    else:
        data = 1 if strategy == "tp" else count
    devices = np.reshape(np.array(where.devices, dtype=object), (data, count // data))
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def param_shapes(config: LlamaConfig, layout: Layout, quant: str | None, dtype: Any) -> Any:
    """Return the parameters as shapes that know where they lie; nothing is allocated.

    Parameters
    ----------
    quant
        As in `compile_for`.
    dtype
        Of the weights, where they are not int8, and of the norms.
    """
    shapes = params_of(Llama(config, dtype=dtype))
    if quant is not None:
        shapes = jax.eval_shape(quantize, shapes)
    places = sharding.param_shardings(config, layout.mesh, layout.strategy)

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        attribute = keys.pop() if keys[-1] in ("values", "scale") else "values"
        spec = [*places[tuple(keys)].spec, *[None] * 3][: len(places[tuple(keys)].spec)]
        if attribute == "scale":  # One per output.
            shared = SHARED_AXES[keys[-1]]
            whole = shared[0] != 0  # (V, 1) keeps its axes.
            spec = [
                None if axis in shared else part
                for axis, part in enumerate(spec)
                if whole or axis not in shared
            ]
        place = NamedSharding(layout.mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree_util.tree_map_with_path(placed, shapes)


def cache_shapes(
    config: LlamaConfig, layout: Layout, batch: int, context: int, quant: str | None
) -> KVCache:
    """Return a cache as shapes that know where they lie."""
    dtype = jnp.int8 if quant else _DTYPE
    shapes = jax.eval_shape(lambda: KVCache.create(config, batch, context, dtype))

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = caches.AXES[: leaf.ndim] if leaf.ndim > 1 else (None,) * leaf.ndim
        place = layout.sharding(leaf.shape, axes)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(placed, shapes)


def _tokens(layout: Layout, *shape: int) -> jax.ShapeDtypeStruct:
    axes = ("batch", None)[: len(shape)]
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.sharding(shape, axes))


def _decode(
    config: LlamaConfig,
    layout: Layout,
    batch: int,
    context: int,
    quant: str | None,
    choice: Choice,
) -> Program:
    if layout.strategy == "tp":
        return _decode_by_hand(config, layout, batch, context, quant, choice)
    params = param_shapes(config, layout, quant, _DTYPE)
    cache = cache_shapes(config, layout, batch, context, quant)
    key, numbers = jax.eval_shape(lambda: (jax.random.key(0), Sampling().numbers()))
    width = 1 if quant else 2
    step = roofline.decode(batch, context, weights=width, cache=width)
    return Program(
        decode_step,
        (params, cache, _tokens(layout, batch), key, numbers),
        {"config": config, "greedy": True, "layout": layout, "attention": choice},
        params,
        cache,
        (),
        lambda where: roofline.floor(config, step, where.device, len(where.devices)),
        batch,
    )


def _decode_by_hand(
    config: LlamaConfig,
    layout: Layout,
    batch: int,
    context: int,
    quant: str | None,
    choice: Choice,
) -> Program:
    mesh = pod.make_mesh(config, layout.mesh.devices)
    params = pod.param_shapes(config, mesh, quant, _DTYPE)
    dtype, width = (jnp.int8, 1) if quant else (_DTYPE, 2)
    cache = pod.cache_shapes(config, mesh, batch, context, dtype)
    attend = {}
    if choice.kind == "pallas":
        attend = {"attend": functools.partial(pod.kernel, chip=choice.chip)}
    step = roofline.decode(batch, context, weights=width, cache=width)
    return Program(
        pod.decode_step,
        (params, cache, jax.ShapeDtypeStruct((batch,), jnp.int32)),
        {"config": config, "mesh": mesh, **attend},
        params,
        cache,
        (),
        lambda where: roofline.floor(config, step, where.device, len(where.devices)),
        batch,
    )


def _prefill(
    config: LlamaConfig,
    layout: Layout,
    batch: int,
    context: int,
    quant: str | None,
    choice: Choice,
) -> Program:
    params = param_shapes(config, layout, quant, _DTYPE)
    dtype, width = (jnp.int8, 1) if quant else (_DTYPE, 2)
    step = roofline.prefill(batch, context, weights=width, cache=width)
    length = jax.ShapeDtypeStruct((), jnp.int32)
    return Program(
        prefill,
        (params, _tokens(layout, batch, context), _tokens(layout, batch), length),
        {
            "config": config,
            "capacity": context,
            "dtype": dtype,
            "layout": layout,
            "attention": choice,
        },
        params,
        cache_shapes(config, layout, batch, context, quant),
        (),
        lambda where: roofline.floor(config, step, where.device, len(where.devices)),
        batch * context,
    )


def _train(
    config: LlamaConfig,
    layout: Layout,
    batch: int,
    context: int,
    quant: str | None,
    choice: Choice,
) -> Program:
    if quant is not None:
        raise InputError("training is in float32 and bfloat16; leave --quant out.")
    params = param_shapes(config, layout, None, jnp.float32)
    optimizer = optax.adamw(1e-4)
    state = jax.eval_shape(optimizer.init, params)
    # Moments lie as the weights do.
    state = optax.tree_map_params(
        optimizer,
        lambda leaf, like: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding),
        state,
        params,
    )
    return Program(
        train_step,
        (params, state, Batch(*[_tokens(layout, batch, context)] * 2)),
        {"config": config, "optimizer": optimizer, "layout": layout},
        params,
        (),
        state,
        lambda where: roofline.train_floor(
            config, batch, context, where.device, len(where.devices)
        ),
        batch * context,
    )


_PROGRAMS = {"decode": _decode, "prefill": _prefill, "train": _train}


# Collectives on SparseCores carry no estimate, and older jaxlibs can't print them.
_READABLE = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": False
    for kind in ("all_reduce", "all_gather", "reduce_scatter")
}


@contextlib.contextmanager
def _without_kept_programs() -> Iterator[None]:
    """Compile without JAX's persistent cache: it takes programs for descriptions, but reads none.

    JAX looks once per process whether the cache is on, hence the resets.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _cost(program: Program, where: Topology) -> tuple[Cost, str]:
    lowered = program.function.lower(*program.arguments, **program.options)
    try:
        options = _READABLE if where.kind.sparse and compat.SPARSECORE_OPTIONS else None
        with _without_kept_programs():
            compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Cost(_shard_bytes(program.arguments)), ""
    memory = compiled.memory_analysis()
    # What is returned takes room as well, but for what is written in place.
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    held = (memory.argument_size_in_bytes, memory.temp_size_in_bytes + extra)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # jaxlib 0.10 on some overlapped collectives; 0.12 can.
        return Cost(*held), ""
    found = hlo.schedule(text)
    return Cost(
        *held,
        found.cycles,
        found.kernel_bytes,
        found.kernel_flops,
        found.collectives,
        found.collective_bytes,
    ), text


def _at(layers: int, depths: tuple[int, ...], costs: list[Cost]) -> Cost:
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
        return max(a, b) + max(0, b - a) * (layers - high) // (high - low)

    fields = (field.name for field in dataclasses.fields(Cost))
    return Cost(*(grown(getattr(small, name), getattr(large, name)) for name in fields))


def _shard_bytes(tree: Any) -> int:
    """Return the bytes of each device's part of all arrays of a tree."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        place = getattr(leaf, "sharding", None)
        shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
        width = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        return math.prod(shape) * width

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


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
    step = None
    if cost.cycles is not None and fits:
        device = where.device
        kernels = max(cost.kernel_bytes / device.bandwidth, cost.kernel_flops / device.flops)
        step = cost.cycles / where.kind.clock + kernels
    return Report(
        topology=where.name,
        chips=where.chips,
        phase=phase,
        strategy=layout.strategy,
        mesh=dict(layout.mesh.shape),
        **asked,
        weight_bytes=_shard_bytes(program.weights),
        cache_bytes=_shard_bytes(program.cache),
        state_bytes=_shard_bytes(program.state),
        argument_bytes=cost.arguments,
        temp_bytes=cost.temporaries,
        hbm_bytes=usable,
        fits=fits,
        collectives=cost.collectives or {},
        collective_bytes=cost.collective_bytes or {},
        estimated_step_ms=step and float(f"{step * 1e3:.6g}"),
        roofline_ms=float(f"{floor.seconds * 1e3:.6g}"),
        bound="memory" if floor.memory > floor.compute else "compute",
        tokens_per_s=step and round(program.tokens / max(step, floor.seconds), 1),
        compile_s=round(seconds, 1),
        layers_compiled=list(depths),
    )
