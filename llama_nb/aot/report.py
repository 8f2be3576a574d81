"""What the compiler says of a step, as numbers and as lines to read."""

import dataclasses


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
