"""Exercises of chapter 19."""

import math
from collections.abc import Callable

from llama_nb.check.compare import Verdict, run

_LINE = '  %{name} = {result} {kind}(%x.{index}), channel_id={index}, metadata={{op_name="psum"}}'


def talk(function: Callable[[str, str], tuple[int, int]]) -> Verdict:
    """Check `f(text, kind) -> (count, bytes)`: the collectives of one kind in a program's text."""
    sizes = {"bf16": 2, "f32": 4}

    def cases():
        # Each: (kind, asynchronous, dtype, dimensions).
        for about, lines in (
            ("one all-reduce", [("all-reduce", False, "bf16", (8, 8192))]),
            (
                "collectives of two kinds",
                [
                    ("all-reduce", False, "bf16", (8, 64)),
                    ("all-gather", False, "f32", (16, 8)),
                    ("all-reduce", False, "f32", (4,)),
                ],
            ),
            (
                "one that runs in the background",
                [("all-reduce", True, "bf16", (2, 3)), ("all-gather", True, "bf16", (5, 7))],
            ),
            ("a scalar", [("all-reduce", False, "f32", ())]),
            ("no collectives", []),
        ):
            text = _program(lines)
            for kind in ("all-reduce", "all-gather"):
                of_kind = [sizes[d] * math.prod(shape) for k, _, d, shape in lines if k == kind]
                yield f"{about}, asked for {kind}", (text, kind), (len(of_kind), sum(of_kind))

    return run("talk", function, cases())


def _program(lines: list[tuple[str, bool, str, tuple[int, ...]]]) -> str:
    out = ["ENTRY %main (x.0: bf16[8,8192]) -> bf16[8,8192] {"]
    for index, (kind, background, dtype, shape) in enumerate(lines):
        order = ",".join(map(str, reversed(range(len(shape)))))
        result = f"{dtype}[{','.join(map(str, shape))}]{{{order}:T(8,128)}}"
        for step in ("-start", "-done") if background else ("",):
            name = f"{kind}{step}.{index}"
            out.append(_LINE.format(name=name, result=result, kind=kind + step, index=index))
        out.append(
            f'  %fusion.{index} = {result} fusion(%{name}), calls=%f, metadata={{op_name=""}}'
        )
    return "\n".join([*out, "}"])


def deeper(function: Callable[[int, float, int, float, int], float]) -> Verdict:
    """Check `f(low, cost_low, high, cost_high, layers) -> cost`: layers cost the same each."""

    def cases():
        for low, high, layers, each, rest in (
            (2, 6, 80, 78_500, 370_000),
            (1, 2, 126, 3.5, 11.25),
            (2, 4, 2, 7, 0),
            (4, 10, 1, 12, 5),
        ):
            costs = low * each + rest, high * each + rest
            about = f"{low} and {high} layers, {layers} wanted"
            yield about, (low, costs[0], high, costs[1], layers), layers * each + rest

    return run("deeper", function, cases(), atol=1e-3)


def finish(function: Callable[[list[tuple], float], float]) -> Verdict:
    """Check `f(schedule, bandwidth) -> seconds` with copies in the background, one by one."""

    def cases():
        for about, schedule, bandwidth, expected in (
            ("work alone", [("work", 2.0), ("work", 3.0)], 10.0, 5.0),
            ("a copy hidden by work", _hidden(4.0), 10.0, 6.0),
            ("a copy longer than the work", _hidden(1.0), 10.0, 5.0),
            (
                "two copies at once",
                [
                    ("start", "a", 20),
                    ("start", "b", 20),
                    ("work", 1.0),
                    ("done", "b"),
                    ("done", "a"),
                ],
                10.0,
                4.0,
            ),
            (
                "a copy asked for late",
                [("work", 5.0), ("start", "a", 10), ("work", 0.5), ("done", "a"), ("work", 1.0)],
                10.0,
                7.0,
            ),
            ("a copy nobody waits for", [("start", "a", 1000), ("work", 1.0)], 10.0, 1.0),
        ):
            yield about, (schedule, bandwidth), expected

    return run("finish", function, cases())


def _hidden(work: float) -> list[tuple]:
    return [("start", "w", 30), ("work", work), ("done", "w"), ("work", 2.0)]
