"""Reading a compiled TPU program: what it does, in which order, and how long that should take.

The TPU compiler schedules a program before it runs and writes its own estimate, in cycles, beside
every operation. Adding them up needs no TPU.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

# Bits per number.
_BITS = {
    "pred": 8,
    **dict.fromkeys(("s4", "u4"), 4),
    **dict.fromkeys(("s8", "u8", "f8e4m3fn", "f8e5m2"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64"), 64),
}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation of a computation.

    Attributes
    ----------
    name, opcode
        Such as "fusion.12" and "fusion".
    result
        The text of its result's shape.
    text
        All that follows the `=`.
    """

    name: str
    opcode: str
    result: str
    text: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it gives none, or days, or -1 (unsigned)."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.text)
        cycles = int(found.group(1)) if found else 0
        return cycles if cycles < 2**50 else 0

    @property
    def is_kernel(self) -> bool:
        """Whether it is a Pallas kernel, for which the compiler has no estimate."""
        return self.opcode == "custom-call" and 'target="tpu_custom_call"' in self.text

    @property
    def flops(self) -> int:
        """What a kernel says that it computes; 0 where it doesn't."""
        found = re.search(r'"cost_estimate":\{"flops":"?(\d+)', self.text)
        return int(found.group(1)) if found else 0

    @property
    def collective(self) -> str | None:
        """Its kind, where devices talk; the start of an asynchronous one counts, its end not."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What one step of a program costs on one device, as its compiler sees it.

    Attributes
    ----------
    cycles
        Of everything but Pallas kernels.
    kernels, kernel_bytes
        Pallas kernels that run, and the bytes of their operands and results: each is charged the
        time of moving them once.
    kernel_flops
        Operations of those kernels that say so (`pl.CostEstimate`).
    collectives, collective_bytes
        How often devices talk, and the bytes of the results, by kind.
    unbounded
        Loops whose trip count the compiler doesn't know, counted as one round.
    """

    cycles: int
    kernels: int
    kernel_bytes: int
    kernel_flops: int
    collectives: dict[str, int]
    collective_bytes: dict[str, int]
    unbounded: int

    def seconds(self, clock: float, bandwidth: float, flops: float = math.inf) -> float:
        """Return the time at a clock (cycles/s), kernels by bandwidth (bytes/s) and FLOPs/s."""
        kernels = max(self.kernel_bytes / bandwidth, self.kernel_flops / flops)
        return self.cycles / clock + kernels


def shape_bytes(text: str) -> int:
    """Return the bytes of all arrays whose shapes a text names: 16 for "bf16[2,4]{1,0}"."""
    bits = sum(
        _BITS.get(dtype, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in _SHAPE.findall(text)
    )
    return bits // 8


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return every computation's instructions, and the name of the one that is entered.

    Parameters
    ----------
    text
        `compiled.as_text()`.

    Raises
    ------
    ValueError
        For a text that is no HLO module.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header.group(2)] = []
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            name, rest = found.groups()
            if opcode := _OPCODE.search(" " + rest):
                result = rest[: rest.find(opcode.group(1) + "(")]
                current.append(Instruction(name, opcode.group(1), result, rest))
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation.")
    return computations, entry


def executed(text: str) -> Iterator[tuple[Instruction, int, dict[str, str]]]:
    """Yield what one step executes: each instruction, how often, and its neighbours' results."""
    computations, entry = parse(text)

    def walk(name: str, times: int) -> Iterator[tuple[Instruction, int, dict[str, str]]]:
        results = {instruction.name: instruction.result for instruction in computations[name]}
        for instruction in computations[name]:
            yield instruction, times, results
            if instruction.opcode == "while":
                (body,) = re.findall(r"body=%([\w.\-]+)", instruction.text)
                yield from walk(body, times * (trip_count(instruction) or 1))
            elif instruction.opcode in ("call", "conditional"):
                callees = r"(?:to_apply|true_computation|false_computation)=%([\w.\-]+)"
                for callee in re.findall(callees, instruction.text):
                    if callee in computations:
                        yield from walk(callee, times)

    return walk(entry, 1)


def trip_count(loop: Instruction) -> int | None:
    """Return how often a `while` runs, where the compiler knows."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    return int(found.group(1)) if found else None


def groups(collective: Instruction) -> list[list[int]]:
    """Return which devices talk to each other, by their numbers in the program.

    XLA writes the same groups as lists, as a grid of all numbers that is turned and cut into
    rows, or as axes of a mesh. Senders and receivers of a permutation are pairs.

    Returns
    -------
    list of list of int
        Empty where all talk and the text doesn't say how many they are.

    Raises
    ------
    ValueError
        For an instruction that names no groups, or in another notation.
    """
    text = collective.text
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}", text):
        return [_numbers(one) for one in re.findall(r"\{([\d,]*)\}", found.group(1))]
    grid = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(rf"replica_groups=\[([\d,]+)\]<={grid}", text):
        return _turned(found.group(2), found.group(3)).reshape(_numbers(found.group(1))).tolist()
    mesh = rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({grid}\))? ?\{{([^}}]*)\}}"
    if found := re.search(mesh, text):
        axes = re.findall(r"'([^']+)'=(\d+)", found.group(1))
        names, shape = [name for name, _ in axes], [int(size) for _, size in axes]
        said = [name.strip().strip("'") for name in found.group(4).split(",")]
        if set(said) <= set(names):
            ids = _turned(found.group(2) or str(math.prod(shape)), found.group(3)).reshape(shape)
            order = [*(names.index(n) for n in names if n not in said), *map(names.index, said)]
            size = math.prod(shape[names.index(name)] for name in said)
            return ids.transpose(order).reshape(-1, size).tolist()
    raise ValueError(f"no groups are known of this instruction: {collective.opcode}.")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _turned(shape: str, order: str | None) -> np.ndarray:
    """Return 0, 1, 2... in a grid, whose axes are then reordered."""
    grid = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return grid.transpose(_numbers(order)) if order else grid


def schedule(text: str) -> Schedule:
    """Return what a compiled module executes, with the compiler's own estimates."""
    cycles = kernels = kernel_bytes = kernel_flops = unbounded = 0
    counts, sizes = collections.Counter(), collections.Counter()
    for instruction, times, results in executed(text):
        cycles += times * instruction.cycles
        if kind := instruction.collective:
            counts[kind] += times
            sizes[kind] += times * _result_bytes(instruction, results)
        if instruction.is_kernel:
            kernels += times
            kernel_flops += times * instruction.flops
            kernel_bytes += times * (
                _operand_bytes(instruction, results) + shape_bytes(instruction.result)
            )
        unbounded += instruction.opcode == "while" and trip_count(instruction) is None
    return Schedule(
        cycles, kernels, kernel_bytes, kernel_flops, dict(counts), dict(sizes), unbounded
    )


def _result_bytes(op: Instruction, results: dict[str, str]) -> int:
    """Return the bytes that arrive; the start of some asynchronous ones names what leaves, too."""
    size = shape_bytes(op.result.replace("u32[]", ""))  # Handles.
    if op.opcode in ("all-gather-start", "collective-permute-start"):
        inputs = op.text.partition(op.opcode + "(")[2].partition(")")[0]
        size -= sum(shape_bytes(results.get(n, "")) for n in re.findall(r"%([\w.\-]+)", inputs))
    return size


def _operand_bytes(kernel: Instruction, results: dict[str, str]) -> int:
    shapes = re.search(r"operand_layout_constraints=\{(.*?)\}(?:, \w+=|$)", kernel.text)
    if shapes:
        return shape_bytes(shapes.group(1))
    return sum(shape_bytes(results.get(n, "")) for n in re.findall(r"%([\w.\-]+)", kernel.text))
