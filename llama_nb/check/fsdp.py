"""Exercises of chapter 18."""

from collections.abc import Callable
from fractions import Fraction

from llama_nb.check.compare import Verdict, run


def zero_bytes(function: Callable[[int, int, int], float]) -> Verdict:
    """Check `f(params, devices, stage) -> bytes` that each device holds, float32 with Adam.

    Stage 0 splits nothing, 1 the moments, 2 the gradients too, 3 the weights too.
    """

    def cases():
        for params, devices in ((1_000_000, 8), (8_030_261_248, 64), (4096, 1)):
            for stage, whole in enumerate((16, 8, 4, 0)):
                expected = whole * params + (16 - whole) * params / devices
                about = f"{params:,} parameters on {devices} devices, stage {stage}"
                yield about, (params, devices, stage), expected

    return run("zero_bytes", function, cases())


def best_mesh(function: Callable[[int, int, int, int], tuple[int, int]]) -> Verdict:
    """Check `f(devices, B, D, F) -> (rows, columns)`: the mesh that sends the fewest bytes.

    Weights (D, F) and (F, D) are gathered along the rows three times a step; activations (B, D)
    are summed along the columns, once forward and once backward.
    """

    def sent(rows: int, columns: int, B: int, D: int, F: int) -> Fraction:
        gathers = Fraction(3 * 2 * D * F * (rows - 1), rows * columns)
        return gathers + Fraction(2 * 2 * B * D * (columns - 1), rows * columns)

    def cases():
        for devices, B, D, F in (
            (8, 64, 64, 256),
            (8, 400, 64, 256),
            (8, 100_000, 64, 256),
            (64, 30_000, 4096, 14_336),
            (64, 400_000, 4096, 14_336),
            (256, 2_000_000, 8192, 28_672),
            (16, 32, 8192, 28_672),
        ):
            shapes = [(2**k, devices >> k) for k in range(devices.bit_length())]
            expected = min(shapes, key=lambda shape: sent(*shape, B, D, F))
            yield f"{devices} devices, B={B:,}, D={D}, F={F}", (devices, B, D, F), expected

    return run("best_mesh", function, cases())


def microbatches(function: Callable[[int, Fraction], int]) -> Verdict:
    """Check `f(stages, idle) -> m`: the fewest microbatches with a bubble of at most `idle`."""

    def cases():
        for stages, idle in ((4, "1/4"), (4, "1/10"), (8, "1/20"), (16, "3/100"), (2, "9/10")):
            share = Fraction(idle)
            expected = -((1 - stages) * (1 - share) // share)
            yield f"{stages} stages, idle {idle}", (stages, share), expected

    return run("microbatches", function, cases())
