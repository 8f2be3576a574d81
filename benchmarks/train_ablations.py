"""What warmup, decay, clipping and shuffling are worth: one part of training left out at a time.

The small model of chapter 13, from several seeds, at several learning rates; the loss at the end is
that of 128 rows of files that were held out. The chapter runs one rate live and shows this grid
beside it.

    python benchmarks/train_ablations.py [--seconds N] [--part FILE] [--save]

Takes about three minutes on two cores; with --seconds it stops and goes on at the next call.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datasets
import jax
import jax.numpy as jnp
import machine
import numpy as np
import optax
from flax import nnx

from llama_nb import data
from llama_nb.config import LlamaConfig
from llama_nb.model import Llama, params_of, with_params

T, B, STEPS, SEEDS, WARMUP, SPOILT = 64, 8, 200, 3, 20, 100
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SMALL = LlamaConfig(512, 64, 176, 2, 4, 2, 16, context=T, tied=True)
# Of each way: warmup, end of the rate, limit, decay of weights, rows shuffled, a batch of noise.
WAYS = {
    "all parts": (WARMUP, 0.1, 1.0, 0.1, True, False),
    "no warmup": (0, 0.1, 1.0, 0.1, True, False),
    "constant rate": (WARMUP, 1.0, 1.0, 0.1, True, False),
    "no limit": (WARMUP, 0.1, 1e9, 0.1, True, False),
    "no weight decay": (WARMUP, 0.1, 1.0, 0.0, True, False),
    "files in order": (WARMUP, 0.1, 1.0, 0.1, False, False),
    "noise": (WARMUP, 0.1, 1.0, 0.1, True, True),
    "noise, no limit": (WARMUP, 0.1, 1e9, 0.1, True, True),
}


def main() -> None:
    """Train every way at every rate, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after, to go on later"
    )
    parser.add_argument("--part", type=Path, default=Path("_build/train_ablations.json"))
    parser.add_argument("--save", action="store_true", help="write results/train_ablations.json")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    began, (rows, fresh) = time.perf_counter(), rows_of_text()
    begins = [params_of(Llama(SMALL, rngs=nnx.Rngs(seed))) for seed in range(SEEDS)]
    begins = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begins)
    found = json.loads(options.part.read_text()) if options.part.exists() else {}
    for rate in RATES:
        for name, way in WAYS.items():
            if f"{rate} {name}" in found or time.perf_counter() - began > options.seconds:
                continue
            losses = np.asarray(trained(begins, rows, fresh, rate, *way), np.float64)
            found[f"{rate} {name}"] = losses.round(4).tolist()
            options.part.parent.mkdir(parents=True, exist_ok=True)
            options.part.write_text(json.dumps(found))
            print(f"{rate:6} {name:16}", found[f"{rate} {name}"], flush=True)
    if len(found) < len(RATES) * len(WAYS):
        print("to be continued")
    elif options.save:
        final = {name: [found[f"{rate} {name}"] for rate in RATES] for name in WAYS}
        figures = {"steps": STEPS, "batch": B, "T": T, "rates": RATES, "final_loss": final}
        print("kept in", machine.save("train_ablations", figures))


def rows_of_text() -> tuple[np.ndarray, np.ndarray]:
    """Return rows of T + 1 tokens, in the order of the files, to learn from and to measure with."""
    documents = data.documents("python-source").filter(lambda row: "charmap" not in row["text"])
    learn, held = data.split(documents, 0.05)
    tokenizer = data.train_bpe(learn, SMALL.vocab_size)
    found = []
    for part in (learn.select(range(0, len(learn), 4)), held):
        files = data.tokenize(part, tokenizer)["ids"][:]
        rows = [ids[k : k + T + 1] for ids in files for k in range(0, len(ids) - T, T)]
        found.append(np.array(rows, np.int32))
    rows, fresh = found
    return rows, fresh[:: len(fresh) // 128][:128]


def trained(begins, rows, fresh, rate, warmup, end, limit, decay, shuffled, noise) -> jax.Array:
    """Return the loss of the fresh rows at the end, one for each seed."""
    share = np.clip((np.arange(STEPS) - warmup) / (STEPS - warmup), 0, 1)
    rates = rate * (end + (1 - end) * (1 + np.cos(np.pi * share)) / 2)
    rates[:warmup] = rate * np.arange(warmup) / max(warmup, 1)
    batches = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        first = rng.integers(len(rows) - STEPS * B)
        order = rng.permutation(len(rows)) if shuffled else first + np.arange(STEPS * B)
        batches.append(rows[order[: STEPS * B]].reshape(STEPS, B, T + 1))
        if noise:
            batches[-1][SPOILT] = rng.integers(2, SMALL.vocab_size, (B, 1))
    return side_by_side(begins, np.stack(batches), rates, limit, decay, fresh)


def loss_of(params, tokens):
    """Return the mean loss of tokens (B, T + 1)."""
    logits = with_params(SMALL, params)(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def whole_run(params, batches, rates, limit, decay, fresh):
    """Train on batches (steps, B, T + 1), and return the loss of fresh rows."""

    def step(carried, given):
        (params, m, v, n), (tokens, rate) = carried, given
        grads = jax.grad(loss_of)(params, tokens)
        factor = jnp.minimum(1.0, limit / optax.global_norm(grads))
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * factor * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * (factor * g) ** 2, v, grads)

        def new(w, m, v):
            move = m / (1 - 0.9**n) / (jnp.sqrt(v / (1 - 0.95**n)) + 1e-8)
            return w - rate * (move + (decay if w.ndim > 1 else 0.0) * w)

        return (jax.tree.map(new, params, m, v), m, v, n + 1), None

    nothing = jax.tree.map(jnp.zeros_like, params)
    (params, *_), _ = jax.lax.scan(step, (params, nothing, nothing, 1.0), (batches, rates))
    return loss_of(params, fresh)


side_by_side = jax.jit(jax.vmap(whole_run, in_axes=(0, 0, None, None, None, None)))


if __name__ == "__main__":
    main()
