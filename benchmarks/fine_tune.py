"""Full fine-tuning, norms only and LoRA of the default model: what each learns and what it forgets.

All learn the conversations of chapter 14, which shows the result, for the same number of steps, at
several learning rates. Two numbers say what came of it: the loss on answers to questions that were
held out, and the bits per byte of ordinary text, Python's manual. `json` counts the answers in the
form that was taught, `right` those that name what was expected, in whatever form.

    python benchmarks/fine_tune.py [WAY ...] [--save]

WAY is full, norms or lora-RANK, optionally with @ and a learning rate, as in `lora-8@0.003`; by
default all of `CASES`. What was kept before stays. About a minute a case on two cores.
"""

import argparse
import ast
import json
import os
import re
import statistics
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import machine
import numpy as np

import llama_nb
from llama_nb import data
from llama_nb.model import params_of, with_params
from llama_nb.perplexity import losses
from llama_nb.train import tuning
from llama_nb.train.optimizer import adamw
from llama_nb.train.scores import evaluate
from llama_nb.train.step import Recipe, train_step

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "14_fine_tuning.ipynb"
STEPS, BATCH, T, WARMUP = 16, 8, 49, 2
TEXT, WINDOW, NEW = 4096, 512, 28  # tokens of ordinary text; tokens of an answer, at most
CASES = {
    "full": (1e-5, 3e-5, 1e-4, 3e-4),
    "norms": (1e-3, 3e-3, 1e-2, 3e-2),
    "lora-8": (3e-4, 1e-3, 3e-3, 1e-2),
    "lora-2": (3e-3,),
    "lora-32": (3e-3,),
}
RECIPE = Recipe(dtype="float32", keep="everything")


def from_notebook(name: str) -> list[tuple[str, ...]]:
    """Return the lines that a cell of the chapter assigns to a name: questions and answers."""
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and f"{name} = " in source:
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assign) and node.targets[0].id == name:
                    lines = ast.literal_eval(node.value).strip().splitlines()
                    return [tuple(line.split(" | ")) for line in lines]
    raise LookupError(f"{NOTEBOOK.name} assigns no {name}")


def conversations(pairs: list[tuple[str, str]], tokenizer: Any) -> Any:
    """Return tokenized conversations: a question, and its answer as JSON."""
    made = [
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": json.dumps({"answer": answer})},
        ]
        for question, answer in pairs
    ]
    return data.tokenize_chats(data.conversations(made), tokenizer)


class Judge:
    """What a model says and predicts."""

    def __init__(self, model: Any, tokenizer: Any):
        self.config, self.tokenizer = model.config, tokenizer
        self.asked = from_notebook("HELD_OUT")
        self.held = conversations(self.asked, tokenizer)
        self.others = [line for (line,) in from_notebook("OTHERS")]
        manual = "\n".join(topics[topic] for topic in sorted(topics))
        self.ids = tokenizer.encode(manual)[:TEXT]
        # The first token of each window is given.
        read = np.reshape(self.ids, (-1, WINDOW))[:, 1:]
        self.bytes = sum(len(tokenizer.token_bytes(int(token))) for token in read.ravel())

    def of(self, params: Any) -> dict[str, Any]:
        """Return the numbers and answers of plain weights."""
        model = with_params(self.config, params)
        questions = [question for question, _ in self.asked] + self.others
        said = [
            done.text
            for done in llama_nb.complete(
                model, self.tokenizer, questions, chat=True, max_new_tokens=NEW
            )
        ]
        held = evaluate(params, self.config, self.held, batch=BATCH, T=T, recipe=RECIPE)
        nats = losses(model, self.ids, window=WINDOW).sum(dtype=np.float64)
        return {
            "held_loss": held.loss,
            "bits_per_byte": float(nats / np.log(2) / self.bytes),
            "json": sum(is_json(text) for text in said[: len(self.asked)]),
            "right": sum(
                names(text, answer) for text, (_, answer) in zip(said, self.asked, strict=False)
            ),
            "answers": dict(zip(questions, said, strict=True)),
        }


def names(text: str, answer: str) -> bool:
    """Tell whether a text has the answer's last word; before, answers are sentences, not JSON."""
    return answer.split()[-1].lower() in re.findall(r"\w+", text.lower())


def is_json(text: str) -> bool:
    """Tell whether a text is `{"answer": "..."}`, and nothing else."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(found, dict) and list(found) == ["answer"] and isinstance(found["answer"], str)
    )


def kind_of(way: str) -> tuning.Kind:
    """Return what is trained."""
    if way.startswith("lora-"):
        return tuning.Lora(rank=int(way.removeprefix("lora-")))
    return {"full": tuning.Full(), "norms": tuning.Norms()}[way]


def energy(before: Any, after: Any) -> dict[str, list[float]]:
    """Return which share of the squares of a change its 1, 2, 8 and 32 largest directions hold."""
    found = {}
    for layer in (0, 15, 29):
        for name in ("q_proj", "v_proj"):
            delta = after["layers"][layer]["attn"][name] - before["layers"][layer]["attn"][name]
            squares = np.linalg.svd(delta.reshape(delta.shape[0], -1), compute_uv=False) ** 2
            shares = np.cumsum(squares) / squares.sum()
            found[f"{layer} {name}"] = [round(float(shares[r - 1]), 4) for r in (1, 2, 8, 32)]
    return found


def tune(way: str, rate: float, start: Any, chats: Any, judge: Judge) -> dict[str, Any]:
    """Train, and return what it took and what came of it."""
    trainable, frozen = tuning.divide(start, kind_of(way))
    numbers = tuning.count(trainable)
    optimizer = adamw(rate, STEPS, WARMUP, decay=0.0)
    state = jax.jit(optimizer.init)(trainable)
    batches = data.Batches(chats, BATCH, T)
    options = {"config": judge.config, "optimizer": optimizer, "recipe": RECIPE}
    first = next(batches)
    step = train_step.lower(trainable, state, first, frozen=frozen, **options).compile()
    memory = step.memory_analysis()
    curve, seconds = [], []
    for batch in [first, *(next(batches) for _ in range(STEPS - 1))]:
        begun = time.perf_counter()
        trainable, state, row = step(trainable, state, batch, frozen=frozen)
        curve.append(round(float(row["loss"]), 4))
        seconds.append(time.perf_counter() - begun)
    after = tuning.merge(tuning.combine(trainable, frozen))
    found = {
        "way": way,
        "rate": rate,
        "trainable": numbers,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "step_s": round(statistics.median(seconds), 3),
        "losses": curve,
    }
    if way == "full":
        found["energy"] = energy(start, after)
    return found | judge.of(after)


def show(name: str, found: dict[str, Any]) -> None:
    """Print a line."""
    print(
        f"{name:16} held-out loss {found['held_loss']:6.3f}   "
        f"{found['bits_per_byte']:.4f} bits/byte   JSON {found['json']:2}   right "
        f"{found['right']:2}   {found.get('step_s', 0):5.2f} s/step",
        flush=True,
    )


def main() -> None:
    """Measure, print a line per case, and keep them with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", metavar="WAY", default=list(CASES))
    parser.add_argument("--save", action="store_true", help="write results/fine_tune.json")
    options = parser.parse_args()
    model, tokenizer = llama_nb.load(dtype=jnp.float32)
    start, judge = params_of(model), Judge(model, tokenizer)
    chats = conversations(from_notebook("LESSONS"), tokenizer)
    base = kept().get("base") or judge.of(start)
    show("base", base)
    for wanted in options.ways:
        way, _, rate = wanted.partition("@")
        for value in [float(rate)] if rate else CASES[way]:
            found = tune(way, value, start, chats, judge)
            show(f"{way} @ {value:g}", found)
            if options.save:
                cases = [
                    c for c in kept().get("cases", []) if (c["way"], c["rate"]) != (way, value)
                ]
                settings = {"steps": STEPS, "batch": BATCH, "T": T, "text_tokens": TEXT}
                machine.save("fine_tune", {**settings, "base": base, "cases": [*cases, found]})


def kept() -> dict[str, Any]:
    """Return what was saved before."""
    path = machine.RESULTS / "fine_tune.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
