"""A small Llama from nothing: how far twelve minutes of two cores go.

Chapter 13 trains for half a minute in the notebook and shows this run beside it: the same corpus
and way, a larger vocabulary, a deeper and wider model and thirty times the time. The run lies in a
folder and goes on where it was stopped, so it may be done in parts.

    python benchmarks/train_small.py [--steps N] [--seconds N] [--folder DIR] [--save]

Held-out text is scored now and then; count models of the same tokens, as in the chapter, say what
the loss is to be compared with.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datasets
import machine
import numpy as np

import llama_nb
from llama_nb import data
from llama_nb.config import LlamaConfig
from llama_nb.model import with_params
from llama_nb.train import Recipe, evaluate
from llama_nb.train.run import Run, Settings

CORPUS, V, T, SHARE, EVERY = "python-source", 2048, 128, 0.05, 100
PROMPTS = ("def", "class", "import", '    """Return')


def main() -> None:
    """Train, print what comes, and keep it with --save once the run is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after, to go on later"
    )
    parser.add_argument("--folder", type=Path, default=Path("_build/train_small"))
    parser.add_argument("--save", action="store_true", help="write results/train_small.json")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    began = time.perf_counter()
    learn, held, tokenizer = corpus()
    held = held.select(range(16))
    config = LlamaConfig(V, 256, 704, 4, 4, 2, 64, context=512, tied=True)
    recipe = Recipe(dtype="float32", keep="everything")
    settings = Settings(options.steps, batch=16, T=T, peak=1.5e-3, warmup=100, recipe=recipe)
    run = Run(
        options.folder,
        config,
        learn,
        settings,
        save_every=EVERY,
        held=held,
        resume=True,
    )
    for row in run:
        if row["step"] % EVERY == 0:
            print({name: round(value, 4) for name, value in row.items()}, flush=True)
            if time.perf_counter() - began > options.seconds:
                break
    run.close()
    print("at step", run.step, "of", options.steps)
    if options.save and run.step == options.steps:
        figures = summary(run, options.folder, learn, held, tokenizer)
        print("kept in", machine.save("train_small", figures))


def corpus() -> tuple:
    """Return what to learn from, cut into rows; what is held out, whole; and their tokenizer."""
    found = data.documents(CORPUS).filter(lambda row: "charmap" not in row["text"])
    learn, held = data.split(found, SHARE)
    tokenizer = data.train_bpe(learn, V)
    learn, held = (data.tokenize(part, tokenizer) for part in (learn, held))

    def cut(rows: dict) -> dict:
        return {"ids": [i[k : k + T + 1] for i in rows["ids"] for k in range(0, len(i) - 1, T)]}

    return learn.map(cut, batched=True, remove_columns=["bytes"]), held, tokenizer


def summary(run: Run, folder: Path, learn: object, held: object, tokenizer: object) -> dict:
    """Return the curve, thinned, what it is to be compared with, and the score at the end."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = np.array([row["loss"] for row in rows])
    ids = [np.concatenate([np.asarray(i) for i in part["ids"][:]]) for part in (learn, held)]
    score = evaluate(run.weights(), run.config, held, T=T)
    names = ("unigram", "bigram")
    return {
        "corpus": CORPUS,
        "config": dataclasses.asdict(run.config),
        "parameters": run.config.param_count(),
        "settings": dataclasses.asdict(run.settings),
        "tokens_learnt": len(rows) * run.settings.batch * T,
        "tokens_of_corpus": len(ids[0]),
        "seconds": round(sum(row["seconds"] for row in rows)),
        # The machine had other work at times: what a tenth of the steps surpassed.
        "tokens_per_s": round(float(np.quantile([row["tokens_per_s"] for row in rows], 0.9))),
        "every": 20,
        "loss": [
            round(float(part.mean()), 4) for part in np.array_split(losses, len(losses) // 20)
        ],
        "held_steps": [row["step"] for row in rows if "held" in row],
        "held_loss": [round(row["held"], 4) for row in rows if "held" in row],
        "baselines": {name: round(x, 4) for name, x in zip(names, baselines(*ids), strict=True)},
        "score": dataclasses.asdict(score),
        "samples": [write(run, tokenizer, prompt) for prompt in PROMPTS],
    }


def write(run: Run, tokenizer: object, prompt: str) -> str:
    """Return what the model goes on with."""
    model = with_params(run.config, run.weights())
    options = {"max_new_tokens": 160, "temperature": 0.7, "seed": 0}
    return prompt + llama_nb.complete(model, tokenizer, [prompt], **options)[0].text


def baselines(learn: np.ndarray, held: np.ndarray) -> tuple[float, float]:
    """Return the nats per held-out token of a unigram and a bigram model, Witten-Bell smoothed."""
    unigram = (np.bincount(learn, minlength=V) + 1.0) / (len(learn) + V)
    pairs = np.zeros((V, V))
    np.add.at(pairs, (learn[:-1], learn[1:]), 1)
    count, kinds = pairs.sum(1, keepdims=True), (pairs > 0).sum(1, keepdims=True)
    bigram = (pairs + kinds * unigram) / np.maximum(count + kinds, 1)
    bigram = np.where(count > 0, bigram, unigram)
    before, after = held[:-1], held[1:]
    return tuple(float(-np.log(p).mean()) for p in (unigram[after], bigram[before, after]))


if __name__ == "__main__":
    main()
