"""Training on a CPU: tokens per second, beside transformers with torch's AdamW and the peak.

The same small model, weights, batch, precision, schedule and threads, in one run, turn by turn; the
first three losses have to agree. The peer comes as most people write it (transformers' own loss,
`torch.optim.AdamW` with its defaults), tuned (its fused AdamW), and with `torch.compile`. Each has
a process of its own, which sleeps while others compute: threads and freed memory of one framework
slow the other down. The floor: a step computes three times the FLOPs of its forward pass, and the
peak is what a product of two large matrices reaches, measured between the turns.

    python benchmarks/train_cpu.py [--rounds 7] [--steps 6] [--save]
"""

import argparse
import math
import multiprocessing
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
# Ours computes the batch in parts: less memory between the passes, most of it in the cache.
PARTS = {"small": 4, "tiny": 1}
PEAK, STEPS, WARMUP, DECAY, CLIP = 1e-3, 10_000, 100, 0.1, 1.0
BETAS, EPSILON = (0.9, 0.95), 1e-8
OURS, PLAIN = "ours", "transformers"
TUNED, COMPILED = "transformers, fused AdamW", "transformers, torch.compile"


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
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
    for name, ratio in figures["ratios"].items():
        print(f"ours over {name}: {ratio:.2f}")
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

    from llama_nb import roofline

    shape, B, T = SIZES[size]
    names = [OURS, PLAIN, TUNED, COMPILED][: 4 if compiled else 3]
    trainers = {name: Trainer(name, size) for name in names}
    try:
        first = {name: trainer.steps(3)[1] for name, trainer in trainers.items()}
        for losses in first.values():
            assert np.allclose(losses, first[PLAIN], atol=1e-4), f"not the same training: {first}"
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        peaks = []
        for index in range(rounds):
            for name, trainer in trainers.items():
                seconds[name].append(trainer.steps(steps)[0])
            peaks.append(roofline.measure(2).flops)
            print(f"round {index + 1} of {rounds}", file=sys.stderr)
    finally:
        for trainer in trainers.values():
            trainer.close()
    rates = {name: B * T / statistics.median(found) for name, found in seconds.items()}
    peak = statistics.median(peaks)
    config = _config(shape, T)
    flops = roofline.train_flops(config, B, T)
    return {
        "size": size,
        "shape": shape,
        "parameters": config.param_count(),
        "batch": B,
        "parts": PARTS[size],
        "context": T,
        "dtype": "float32",
        "threads": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "steps": steps,
        "first_losses": first,
        "tokens_per_s": rates,
        "ratios": {name: rates[OURS] / rate for name, rate in rates.items() if name != OURS},
        "peak": {
            "flops_per_step": flops,
            "gflops_per_s": peak / 1e9,
            "rate": B * T * peak / flops,
            "reached": {name: rate * flops / peak / B / T for name, rate in rates.items()},
        },
        "seconds_per_step": seconds,
    }


class Trainer:
    """One way to train, in a process of its own that computes only when asked."""

    def __init__(self, name: str, size: str):
        # Not forked: threads of this process's JAX would be missing there.
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, name, size), daemon=True)
        self._process.start()
        other.close()

    def steps(self, count: int) -> tuple[float, list[float]]:
        """Take some steps; return the seconds of one, and each one's loss."""
        self._pipe.send(count)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(20)


def _serve(pipe: Any, name: str, size: str) -> None:
    import numpy as np
    import torch

    shape, B, T = SIZES[size]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, shape["V"], (B, T + 1)).astype(np.int32)
    model = _reference(shape, T)
    if name == OURS:
        step = _ours(model, rows, PARTS[size])
        del model
    else:
        step = _theirs(model, rows, tuned=name != PLAIN, compiled=name == COMPILED)
    while True:
        try:
            count = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        losses = [step() for _ in range(count)]
        pipe.send(((time.perf_counter() - start) / count, losses))


def _config(shape: dict[str, int], context: int) -> Any:
    """Return our config of a shape."""
    from llama_nb.config import LlamaConfig

    V, D, F, L, N, K = (shape[letter] for letter in "VDFLNK")
    return LlamaConfig(V, D, F, L, N, K, D // N, context=context)


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


def _ours(reference: Any, rows: Any, parts: int) -> Callable[[], float]:
    """Return what takes a step from the reference's weights on."""
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
    recipe = Recipe(dtype="float32", keep="everything", accumulate=parts)

    def step() -> float:
        nonlocal params, state
        params, state, numbers = train_step(
            params, state, batch, config=checkpoint.config, optimizer=optimizer, recipe=recipe
        )
        return float(numbers["loss"])

    return step


def _theirs(model: Any, rows: Any, tuned: bool, compiled: bool) -> Callable[[], float]:
    """Return what takes a step of transformers' model: by torch's defaults, or by its fastest."""
    import torch

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=EPSILON, fused=tuned or None)

    def rate(step: int) -> float:
        if step < WARMUP:
            return step / WARMUP
        done = (step - WARMUP) / (STEPS - WARMUP)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    tokens = torch.from_numpy(rows[:, :-1]).long()
    targets = torch.from_numpy(rows[:, 1:]).long()

    def forward() -> Any:
        if not tuned:
            return model(input_ids=tokens, shift_labels=targets, labels=targets).loss
        logits = model(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    loss_of = torch.compile(forward) if compiled else forward

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=tuned or None)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
