"""8B on one accelerator: prefill and decode, as shares of what the device was measured to do.

Random weights of the exact shapes, drawn on the device. Speed is tokens a second; beside it stand
the bytes that a step must read over the measured copy bandwidth, and the FLOPs of a prompt over
the measured rate of a product of two large matrices. `transformers` and, where a checkout is
given, jax-ml's public example run the same cells on the same weights, each in a process of its
own that has the device to itself. Their answers to a prompt are compared before anything is timed.

    python benchmarks/eight_b.py [--peers transformers,jax-ml --jax-ml DIR] [--save]

Weights and cache are both bfloat16, or both int8. On a CPU only a small preset makes sense:

    python benchmarks/eight_b.py --device cpu --preset tiny --prompts 32 --contexts 64 --batches 1,2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine

from llama_nb import devices, hardware, presets, roofline
from llama_nb.config import LlamaConfig

DIFFER = 0.05  # of the largest logit: what bfloat16 may change
GOALS = """Goals on one H200: batch-1 bfloat16 decode at 0.85 of the copy bandwidth or more, int8
at least 1.6 times as fast, prefill of 2,048 tokens and more at 0.55 of the measured products."""


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    options = parsed()
    place(options)
    if options.party:
        work(options)
        return
    if options.device == "cpu" and presets.get(options.preset).param_count() > 10**9:
        print(
            "This benchmark needs an accelerator; --device cpu --preset tiny tries its paths here."
        )
        return
    figures = measure(options)
    print(GOALS)
    if options.save:
        print("kept in", machine.save("eight_b", figures))


def parsed() -> argparse.Namespace:
    """Return the options."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu", "tpu"])
    parser.add_argument("--preset", default="llama3.1-8b")
    parser.add_argument("--prompts", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64])
    parser.add_argument("--contexts", type=numbers, default=[2048, 8192])
    parser.add_argument("--quants", type=lambda text: text.split(","), default=["bfloat16", "int8"])
    parser.add_argument("--peers", type=lambda text: text.split(","), default=["transformers"])
    parser.add_argument("--jax-ml", metavar="DIR", help="a checkout of jax-ml/jax-llm-examples")
    parser.add_argument("--tokens", type=int, default=64, help="decode steps timed at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="transformers without it")
    parser.add_argument("--save", action="store_true", help="write results/eight_b.json")
    parser.add_argument("--party", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def place(options: argparse.Namespace) -> None:
    """Choose the device, before JAX makes its own choice."""
    if options.device == "auto" and not devices.has_accelerator():
        options.device = "cpu"
    known = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    if options.device in known:
        os.environ["JAX_PLATFORMS"] = known[options.device]
    # Ours may take nearly all memory; what torch is to have, JAX must not hold.
    if options.party == "transformers":
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    else:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let every party run in a process of its own; return all that they said."""
    config, said = presets.get(options.preset), {}
    with tempfile.TemporaryDirectory() as folder:
        for party in ["ours", *options.peers]:
            said[party] = []
            for row in spoken(party, folder):
                if "device" in row:
                    device = row
                    print(f"{row['device']}: a copy moves {row['copy_gb_s']:,.1f} GB/s,", end=" ")
                    print(f"a product makes {row['product_tflop_s']:,.2f} TFLOP/s\n{HEAD}")
                    continue
                if "seconds" in row:
                    row |= shares(config, row, device)
                print(line(party, row), flush=True)
                said[party].append(row)
    return {"preset": options.preset, **device, "cells": said, "ratios": ratios(said)}


def spoken(party: str, folder: str) -> Iterator[dict[str, Any]]:
    """Yield what a party prints, one JSON object per line, while it runs."""
    command = [sys.executable, __file__, *sys.argv[1:], "--party", party, "--folder", folder]
    with tempfile.TemporaryFile("w+") as errors:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        for text in run.stdout:
            if text.startswith("{"):
                yield json.loads(text)
        if run.wait():
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or ["no word"])[-1]
            yield {"phase": "all", "reason": f"ended with {run.returncode}: {reason[:100]}"}


def work(options: argparse.Namespace) -> None:
    """Be one party: print a line for the device, and one for each cell."""

    def say(**row: Any) -> None:
        print(json.dumps(row), flush=True)

    if options.party == "ours":
        say(**rates())
    kind, config = party_named(options.party), presets.get(options.preset)
    for quant in options.quants:
        if quant not in kind.quants:
            continue
        try:
            party = kind(config, quant, jax_ml=options.jax_ml, compiled=not options.no_compile)
            compare(party.logits(), options, quant)
        except Exception as error:  # A party that can't is a row, not an end.
            say(phase="all", quant=quant, reason=f"not run: {first_line(error)}")
            continue
        cells = [("prefill", 1, length) for length in options.prompts]
        cells += [("decode", b, s) for s in options.contexts for b in options.batches]
        for phase, batch, context in cells:
            row = {"phase": phase, "quant": quant, "batch": batch, "context": context}
            need = needed(config, quant, batch, context)
            if need > (room := party.room):
                reason = f"skipped: {need / 1e9:.1f} GB, and {room / 1e9:.1f} are free"
                say(**row, reason=reason)
                continue
            try:
                steps = min(options.tokens, context // 2)
                row["steps"] = 1 if phase == "prefill" else steps
                once = (
                    party.prefill(context)
                    if phase == "prefill"
                    else party.decode(batch, context, steps)
                )
                for _ in range(2):
                    once()  # compiles
                say(**row, seconds=statistics.median(once() for _ in range(options.rounds)))
            except Exception as error:
                say(**row, reason=f"not run: {first_line(error)}")
            once = None  # and the cache with it
        del party


def party_named(name: str) -> Any:
    """Return the class of a party."""
    if name == "jax-ml":
        import eight_b_jax_ml

        return eight_b_jax_ml.JaxMl
    import eight_b_parties

    return {"ours": eight_b_parties.Ours, "transformers": eight_b_parties.Transformers}[name]


def first_line(error: Exception) -> str:
    """Return what an error says, briefly."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:100]


def compare(logits: Any, options: argparse.Namespace, quant: str) -> None:
    """Keep our logits, and refuse a peer with others."""
    import numpy as np

    path = options.folder / f"{quant}.npy"
    if options.party == "ours":
        np.save(path, logits)
        return
    ours = np.load(path)
    off = np.abs(logits - ours).max() / np.abs(ours).max()
    if not off <= DIFFER:
        raise RuntimeError(f"its logits differ from ours by {off:.1%} of the largest")


def rates() -> dict[str, Any]:
    """Measure the device: bytes a second of a copy, FLOPs a second of a bfloat16 product."""
    import jax
    import jax.numpy as jnp
    from decode_attention import copy_bandwidth

    small = jax.default_backend() == "cpu"
    dtype, side = (jnp.float32, 1024) if small else (jnp.bfloat16, 8192)
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.matmul)
    seconds = hardware.best_seconds(lambda: product(square, square), 11)
    return {
        "device": jax.devices()[0].device_kind,
        "copy_gb_s": copy_bandwidth(2**26 if small else 2**30) / 1e9,
        "product_tflop_s": 2 * side**3 / seconds / 1e12,
    }


def widths(config: LlamaConfig, quant: str) -> dict[str, float]:
    """Return bytes a number of weights and cache; a scale of 4 bytes serves H numbers of it."""
    if quant == "int8":
        return {"weights": 1, "cache": 1 + 4 / config.head_dim}
    return {"weights": 2, "cache": 2}


def needed(config: LlamaConfig, quant: str, batch: int, context: int) -> float:
    """Return the bytes that a cell takes beside the weights, with a tenth to spare."""
    cache = batch * context * config.cache_bytes_per_token(1) * widths(config, quant)["cache"]
    return 1.1 * (cache + 8 * batch * config.vocab_size)


def work_of(config: LlamaConfig, row: dict[str, Any]) -> roofline.Op:
    """Return the FLOPs and the bytes of a prompt, or of a step in the middle of those timed."""
    width = widths(config, row["quant"])
    if row["phase"] == "prefill":
        step = roofline.prefill(row["batch"], row["context"], **width)
    else:
        step = roofline.decode(row["batch"], row["context"] - row["steps"] // 2, **width)
    return roofline.total(roofline.ops(config, step))


def shares(config: LlamaConfig, row: dict[str, Any], device: dict[str, Any]) -> dict[str, float]:
    """Return tokens a second, and the shares of the copy bandwidth and of the product's rate."""
    work, seconds = work_of(config, row), row["seconds"]
    tokens = row["batch"] * (row["context"] if row["phase"] == "prefill" else 1)
    return {
        "tokens_per_s": tokens / seconds,
        "of_copy": (work.weights + work.cache) / seconds / (device["copy_gb_s"] * 1e9),
        "of_product": work.flops / seconds / (device["product_tflop_s"] * 1e12),
    }


HEAD = f"{'batch':>38}{'tokens':>8}{'tokens/s':>12}{'of copy':>9}{'of product':>11}"


def line(party: str, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    start = f"{party:14}{row['phase']:>8} {row.get('quant', ''):9}"
    start += f"{row.get('batch', ''):>6}{row.get('context', ''):>8}"
    if "reason" in row:
        return f"{start}  {row['reason']}"
    return f"{start}{row['tokens_per_s']:12,.1f}{row['of_copy']:9.2f}{row['of_product']:11.2f}"


def ratios(said: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return our speed over each peer's, and int8's over bfloat16's, by cell."""

    def speeds(party: str, quant: str) -> dict[str, float]:
        return {
            f"{row['phase']} {row['batch']} x {row['context']}": row["tokens_per_s"]
            for row in said[party]
            if row.get("quant") == quant and "tokens_per_s" in row
        }

    ours = speeds("ours", "bfloat16")
    pairs = {f"over {peer}": (ours, speeds(peer, "bfloat16")) for peer in said if peer != "ours"}
    pairs["int8 over bfloat16"] = speeds("ours", "int8"), ours
    return {
        name: {cell: above[cell] / below[cell] for cell in above if cell in below}
        for name, (above, below) in pairs.items()
    }


if __name__ == "__main__":
    main()
