"""The tables of the results page, made from `benchmarks/results` whenever the site is built."""

import json
from typing import Any

from book.strip import ROOT

RESULTS = ROOT / "benchmarks/results"


def read(name: str) -> dict[str, Any]:
    """Return one benchmark's result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: str, rows: list[list[str]]) -> str:
    """Return a Markdown table whose columns after the first are set to the right."""
    rule = "|---|" + "--:|" * (head.count("|") - 2)
    return "\n".join([head, rule, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def pod(model: str) -> str:
    """Return the decode steps of one model."""
    cases = [case for case in read("pod_decode")["cases"] if case["model"] == model]
    head = "| batch, context | book | kernel | arguments | limit |"
    public = any(case["public_step_ms"] for case in cases)
    rows = []
    for case in cases:
        times = [f"{case[part]:.2f}" for part in ("step_ms", "kernel_step_ms", "floor_ms")]
        size, held = f"{case['batch']}, {case['context']:,}", f"{case['argument_gb']:.2f} GB"
        others = [
            f"{case[part]:.2f}" for part in ("public_step_ms", "public_measured_ms") if public
        ]
        rows.append([size, *times[:2], held, times[2], *others])
    return table(head + " public | measured |" * public, rows)


def train_cpu() -> str:
    """Return how fast a training step is on a CPU, beside transformers."""
    found = read("train_cpu")
    names = {
        "ours": "this book",
        "transformers": "transformers, `torch.optim.AdamW`",
        "transformers, fused AdamW": "transformers, its fused form",
        "transformers, torch.compile": "transformers, also compiled",
    }
    rows = []
    for name, shown in names.items():
        rate = found["tokens_per_s"][name]
        step = 1e3 * found["batch"] * found["context"] / rate
        share = found["peak"]["reached"][name]
        rows.append([shown, f"{rate:,.0f}", f"{step:.0f}", f"{share:.2f}"])
    return table("| | tokens/s | ms a step | of the peak |", rows)


def machines() -> str:
    """Return what measured each result."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        by = read(path.stem)["machine"]
        what = f"{by['processor']}, {by['cores']} cores, {by['memory_gib']:.0f} GiB"
        rows.append([f"`{path.stem}`", what, by["python"], by["jax"], by["numpy"]])
    return table("| result | machine | Python | jax | numpy |", rows)


def parts() -> dict[str, str]:
    """Return every table that the page includes, by the name of its file."""
    return {
        "_pod_70b.md": pod("llama3.1-70b"),
        "_pod_8b.md": pod("llama3.1-8b"),
        "_train_cpu.md": train_cpu(),
        "_machines.md": machines(),
    }
