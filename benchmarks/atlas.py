"""What fits where, how fast, and what bounds it: every model compiled for every kind of slice.

No TPU is needed, only `libtpu`. All cases take half an hour on two cores; each is kept as soon as
it is compiled, and a second run with --save goes on with what is missing.

    python benchmarks/atlas.py [--save] [--only PHASE] [--models NAME ...]
"""

import argparse
import dataclasses
import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import machine

from llama_nb import aot, presets

# One sensible slice of each kind: it holds the model in int8 with room for a cache.
SLICES = {
    "llama3.2-1b": ("v5e:1x1", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1"),
    "llama3.1-8b": ("v5e:2x2", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1"),
    "llama3.1-70b": ("v5e:4x4", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1"),
    "llama3.1-405b": ("v5e:8x8", "v5p:2x2x4", "v6e:4x8", "tpu7x:2x2x2"),
}
ONE_CHIP = range(16, 0, -1)  # batches tried for 8B on one v5e chip, context 8,192


def cases() -> list[tuple[str, str, str, int, int, str | None]]:
    """Return (model, topology, phase, batch, context, quant) of every case."""
    found = [
        (model, topology, phase, batch, 2048, "int8")
        for phase, batch in (("decode", 8), ("prefill", 1))
        for model, slices in SLICES.items()
        for topology in slices
    ]
    found.append(("llama3.1-8b", "v6e:1x1", "decode", 1, 2048, None))
    found.append(("llama3.1-8b", "v5e:4x4", "train", 16, 2048, None))
    return found


def main() -> None:
    """Compile what is asked for, print a line each, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/atlas.json")
    parser.add_argument("--only", choices=aot.PHASES, help="one phase")
    parser.add_argument("--models", nargs="*", default=list(SLICES), help="some models")
    options = parser.parse_args()

    def keep(row: dict) -> None:
        show(row)
        if options.save:
            machine.save("atlas", {"cases": sorted([*kept(), row], key=_order)})

    for case in cases():
        known = kept() if options.save else []
        wanted = options.only in (None, case[2]) and case[0] in options.models
        if wanted and case not in map(key, known):
            keep(compiled(*case))
    largest = [row for row in known if key(row)[:3] == ("llama3.1-8b", "v5e:1x1", "decode")]
    if options.only in (None, "decode") and "llama3.1-8b" in options.models and not largest:
        for batch in ONE_CHIP:  # The largest that fits one chip.
            row = compiled("llama3.1-8b", "v5e:1x1", "decode", batch, 8192, "int8")
            if row["fits"]:
                keep(row)
                break


def kept() -> list[dict]:
    """Return the cases of results/atlas.json."""
    path = machine.RESULTS / "atlas.json"
    return json.loads(path.read_text())["cases"] if path.exists() else []


def compiled(
    model: str, topology: str, phase: str, batch: int, context: int, quant: str | None
) -> dict:
    """Return one case's report."""
    config = presets.get(model)
    report, _ = aot.compile_for(
        topology, config, phase=phase, batch=batch, context=context, quant=quant
    )
    row = {"model": model, **dataclasses.asdict(report)}
    del row["compile_s"]  # Cases are compiled side by side: that is no time to quote.
    return row


def key(row: dict) -> tuple:
    """Return what tells cases apart."""
    names = ("model", "topology", "phase", "batch", "context", "quant")
    return tuple(row[name] for name in names)


def _order(row: dict) -> tuple:
    models = list(SLICES)
    return (list(aot.PHASES).index(row["phase"]), models.index(row["model"]), str(key(row)))


def show(row: dict) -> None:
    """Print one case."""
    step = row["estimated_step_ms"]
    speed = "does not fit" if step is None else f"{step:9.2f} ms, {row['tokens_per_s']:10,.0f}/s"
    used = (row["argument_bytes"] + (row["temp_bytes"] or 0)) / 1e9
    print(
        f"{row['model']:14} {row['topology']:12} {row['phase']:8} {row['batch']:3} x "
        f"{row['context']:5} {row['quant'] or 'bf16':5} {used:6.2f} of "
        f"{row['hbm_bytes'] / 1e9:6.2f} GB  {speed}, floor {row['roofline_ms']:8.2f} ms "
        f"({row['bound']})",
        flush=True,
    )


if __name__ == "__main__":
    main()
