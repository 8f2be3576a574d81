"""Training on a CPU: tokens per second, beside transformers with torch's AdamW and the peak.

The same small model, weights, batch, precision, schedule and threads, in one run, turn by turn. The
peer takes its faster form of two, eager and `torch.compile`, each with fused AdamW; the first three
losses have to agree. The floor: a step computes three times the FLOPs of its forward pass, and the
peak is what a product of two large matrices reaches, measured between the turns.

    python benchmarks/train_cpu.py [--rounds 7] [--steps 4] [--save]
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import machine  # after the platform is chosen

SIZES = {  # and a batch: B, T
    "small": (dict(V=4096, D=256, F=688, L=6, N=8, K=4), 8, 256),
    "tiny": (dict(V=256, D=64, F=176, L=2, N=4, K=2), 2, 16),
}
PEAK, STEPS, WARMUP, DECAY, CLIP = 1e-3, 10_000, 100, 0.1, 1.0
BETAS, EPSILON = (0.9, 0.95), 1e-8
OURS, EAGER, COMPILED = "ours", "transformers", "transformers, torch.compile"


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--save", action="store_true", help="write results/train_cpu.json")
    options = parser.parse_args()
    figures = compare(options.size, options.rounds, options.steps, not options.no_compile)
    print(f"\n{'':32}{'tokens/s':>10}{'ms a step':>11}{'of peak':>9}")
    rows = {**figures["tokens_per_s"], "a product of two large matrices": figures["peak"]["rate"]}
    tokens = figures["batch"] * figures["context"]
    for name, rate in rows.items():
        share = rate / figures["peak"]["rate"]
        print(f"{name:32}{rate:10,.0f}{1e3 * tokens / rate:11.1f}{share:9.2f}")
    print(f"\nours over the faster of the others: {figures['ratio']:.2f}")
    if options.save:
        print("kept in", machine.save("train_cpu", figures))


def compare(size: str, rounds: int, steps: int, compiled: bool) -> dict[str, Any]:
    """Return the figures of one run.

    Parameters
    ----------
    size
        Of `SIZES`.
    rounds, steps
        How often all take turns, and how many steps a turn has.
    compiled
        Whether to try `torch.compile`, too.
    """
    import numpy as np
    import torch

    from llama_nb import roofline

    shape, B, T = SIZES[size]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, shape["V"], (B, T + 1)).astype(np.int32)
    model = _reference(shape, T)
    config, ours = _ours(model, rows)
    trainers = {OURS: ours, EAGER: _theirs(model, rows)}
    if compiled:
        again = _reference(shape, T)
        again.load_state_dict(model.state_dict())
        trainers[COMPILED] = _theirs(again, rows, compiled=True)
    first = {name: [step() for _ in range(3)] for name, step in trainers.items()}
    for losses in first.values():
        assert np.allclose(losses, first[EAGER], atol=1e-4), f"not the same training: {first}"
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    peaks = []
    for index in range(rounds):
        for name, step in trainers.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            seconds[name].append((time.perf_counter() - start) / steps)
        peaks.append(roofline.measure(2).flops)
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
    rates = {name: B * T / statistics.median(found) for name, found in seconds.items()}
    peak = statistics.median(peaks)
    flops = roofline.train_flops(config, B, T)
    best = max((name for name in rates if name != OURS), key=rates.__getitem__)
    return {
        "shape": shape,
        "parameters": config.param_count(),
        "batch": B,
        "context": T,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "steps": steps,
        "first_losses": first,
        "tokens_per_s": rates,
        "peer": best,
        "ratio": rates[OURS] / rates[best],
        "peak": {
            "flops_per_step": flops,
            "gflops_per_s": peak / 1e9,
            "rate": B * T * peak / flops,
            "reached": {name: rate * flops / peak / B / T for name, rate in rates.items()},
        },
        "seconds_per_step": seconds,
    }


def _reference(shape: dict[str, int], context: int) -> Any:
    """Return transformers' Llama with random weights of one seed."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.LlamaForCausalLM._from_config(
        transformers.LlamaConfig(
            vocab_size=shape["V"],
            hidden_size=shape["D"],
            intermediate_size=shape["F"],
            num_hidden_layers=shape["L"],
            num_attention_heads=shape["N"],
            num_key_value_heads=shape["K"],
            max_position_embeddings=context,
            tie_word_embeddings=False,
            use_cache=False,
        ),
        attn_implementation="sdpa",
        dtype=torch.float32,
    ).train()


def _ours(reference: Any, rows: Any) -> tuple[Any, Callable[[], float]]:
    """Return the config, and what takes a step from the reference's weights on."""
    import jax
    import numpy as np

    from llama_nb.checkpoint import load_params, open_checkpoint
    from llama_nb.data import Batch
    from llama_nb.train import Recipe, adamw, train_step

    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        checkpoint = open_checkpoint(folder)
        params = load_params(checkpoint, np.float32)
    optimizer = adamw(PEAK, STEPS, WARMUP, decay=DECAY, clip=CLIP, b1=BETAS[0], b2=BETAS[1])
    state = jax.jit(optimizer.init)(params)
    batch = Batch(rows[:, :-1], rows[:, 1:])
    recipe = Recipe(dtype="float32", keep="everything")

    def step() -> float:
        nonlocal params, state
        params, state, numbers = train_step(
            params, state, batch, config=checkpoint.config, optimizer=optimizer, recipe=recipe
        )
        return float(numbers["loss"])

    return checkpoint.config, step


def _theirs(model: Any, rows: Any, compiled: bool = False) -> Callable[[], float]:
    """Return what takes a step of transformers' model, as fast as torch does it."""
    import torch

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=EPSILON, fused=True)

    def rate(step: int) -> float:
        if step < WARMUP:
            return step / WARMUP
        done = (step - WARMUP) / (STEPS - WARMUP)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    tokens = torch.from_numpy(rows[:, :-1]).long()
    targets = torch.from_numpy(rows[:, 1:]).long().flatten()

    def forward() -> Any:
        logits = model(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)

    loss_of = torch.compile(forward) if compiled else forward

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
