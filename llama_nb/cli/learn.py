"""`train` and `eval`: a model trained, fine-tuned, and scored."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_nb.cli.options import add_mesh, mesh_of
from llama_nb.errors import InputError
from llama_nb.progress import bar

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from llama_nb.config import LlamaConfig
    from llama_nb.hardware import Chip
    from llama_nb.tokenizer import Tokenizer
    from llama_nb.train import Score
    from llama_nb.train.run import Run, Settings
    from llama_nb.train.tuning import Kind

_HELD = 200  # Documents that are scored, at most: more take long and say the same.
_SAMPLE = 20_000  # Documents that a vocabulary is counted on, at most.
_LINES = 20  # Of a log that is no terminal.
# Peaks that suit what is trained: a fine-tuned model is near where it should be, and adapters and
# gains begin where they change little.
_RATES = {"full": 5e-5, "norms": 3e-3, "lora": 1e-3}


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    train = commands.add_parser("train", help="train a model from nothing, or fine-tune one")
    train.set_defaults(run=_train)
    _add_data(train)
    train.add_argument("--out", required=True, metavar="DIR", help="new, or a run to --resume")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--steps", type=int, required=True, metavar="N")

    model = train.add_argument_group("the model: a shape with random weights, or a trained one")
    model.add_argument("--preset", default="tiny", metavar="NAME", help="the shape: tiny")
    model.add_argument(
        "--tokenizer",
        metavar="NAME|DIR|FILE",
        help="llama3, smollm2-135m, a file; default: trained on the data",
    )
    model.add_argument("--vocab", type=int, default=1024, metavar="V", help="of that: 1024")
    model.add_argument("--model", metavar="NAME|DIR|FILE.gguf", help="fine-tune this one")
    model.add_argument("--quant", choices=["int8"], help="of the matrices under adapters")
    model.add_argument("--tune", choices=["full", "norms", "lora"], default="full", help="full")
    model.add_argument("--rank", type=int, default=8, metavar="R", help="of LoRA: 8")
    model.add_argument("--alpha", type=float, default=16.0, metavar="A", help="of LoRA: 16")
    model.add_argument("--targets", default="q_proj,v_proj", metavar="P,P", help="of LoRA")

    step = train.add_argument_group("the steps")
    step.add_argument("--lr", type=float, metavar="X", help="the peak")
    step.add_argument("--warmup", type=int, metavar="N", help="steps to the peak: 1 of 20, max 200")
    step.add_argument("--end", type=float, default=0.1, metavar="X", help="share of the peak: 0.1")
    step.add_argument("--decay", type=float, default=0.1, metavar="X", help="of matrices: 0.1")
    step.add_argument("--clip", type=float, default=1.0, metavar="X", help="gradient's length: 1")
    step.add_argument("--accumulate", type=int, default=1, metavar="N", help="pieces of a batch: 1")
    step.add_argument("--dtype", choices=["bfloat16", "float32"], help="of products")
    step.add_argument(
        "--keep", default="nothing", help="nothing, products, everything: for backward"
    )
    step.add_argument("--z-loss", type=float, default=0.0, metavar="X", help="weight: 0")
    step.add_argument("--seed", type=int, default=0, metavar="S")
    add_mesh(train, "fsdp")

    kept = train.add_argument_group("what is kept")
    kept.add_argument("--save-every", type=int, default=100, metavar="N", help="steps: 100")
    kept.add_argument("--keep-last", type=int, default=3, metavar="N", help="checkpoints: 3")

    score = commands.add_parser("eval", help="print a model's perplexity and bits per byte")
    score.set_defaults(run=_eval)
    _add_data(score)
    score.add_argument("--model", required=True, metavar="NAME|DIR|FILE.gguf")
    score.add_argument("--quant", choices=["int8"], help="keep the matrices in int8")
    score.add_argument("--all", action="store_true", help="of the data, not only what is held out")
    score.add_argument("--json", action="store_true", help="print one JSON object")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, metavar="NAME|FILE|DIR", help="such as python-docs, or owner/name"
    )
    parser.add_argument("--column", metavar="C", help="where its text is: text, or messages")
    parser.add_argument("--split", default="train", metavar="S", help="of a dataset: train")
    parser.add_argument("--streaming", action="store_true", help="read it as it is needed")
    parser.add_argument("--chat", action="store_true", help="it holds conversations")
    parser.add_argument("--held-out", type=float, default=0.02, metavar="X", help="share: 0.02")
    parser.add_argument("--batch", type=int, default=8, metavar="B", help="rows: 8")
    parser.add_argument("--context", type=int, default=256, metavar="T", help="tokens a row: 256")


def _train(options: argparse.Namespace) -> None:
    from llama_nb import data, hardware, sharding
    from llama_nb.checkpoint.save import save
    from llama_nb.loading import keep_compiled_programs
    from llama_nb.train import folder
    from llama_nb.train.run import Run

    out = Path(options.out)
    folder.check(out, options.resume)  # Before anything that takes long.
    mesh = mesh_of(options)
    settings, tune = _settings(options), _tune(options)
    keep_compiled_programs()
    learn, held = _documents(options)
    config, tokenizer, start = _model(options, learn)
    tokenize = data.tokenize_chats if options.chat else data.tokenize
    tokenized = tokenize(learn, tokenizer)
    run = Run(
        out,
        config,
        tokenized if options.chat else data.pieces(tokenized, options.context),
        settings,
        layout=None if mesh is None else sharding.layout(config, mesh, options.strategy),
        save_every=options.save_every,
        keep=options.keep_last,
        resume=options.resume,
        start=start,
        tune=tune,
        held=None if held is None else tokenize(_first(held, _HELD), tokenizer),
        peak_flops=_peak(hardware.here(), mesh),
    )
    print(_summary(run, tokenizer), file=sys.stderr)
    _go(run)
    model = out / "model"
    if not model.exists():
        save(model, config, run.weights(), tokenizer)
    if held is not None:
        print(f"held out: {_line(run.score())}")
    print(f"python -m llama_nb generate --model {model} PROMPT")


def _go(run: "Run") -> None:
    """Take the steps that are left, and show them."""
    total, began = run.settings.steps, run.step
    terminal = sys.stderr.isatty()
    with bar("training", total - began, quiet=not terminal) as show:
        try:
            for row in run:
                note = _note(row)
                show(row["step"] - began, total - began, note)
                if not terminal and (row["step"] % max(1, total // _LINES) == 0 or "held" in row):
                    print(f"step {row['step']:,} of {total:,}: {note}", flush=True)
        except KeyboardInterrupt:
            print(
                f"\nstopped; the same command with --resume goes on: {run.folder}", file=sys.stderr
            )
            raise


def _note(row: dict[str, float]) -> str:
    parts = [f"loss {row['loss']:.3f}", f"perplexity {math.exp(min(row['loss'], 50)):.4g}"]
    if "held" in row:
        parts.append(f"held out {row['held']:.3f}")
    parts += [f"lr {row['lr']:.2g}", f"{row['tokens_per_s']:,.0f} tokens/s"]
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.0%}")
    return ", ".join(parts)


def _settings(options: argparse.Namespace) -> "Settings":
    import jax

    from llama_nb.train.run import Settings
    from llama_nb.train.step import Recipe

    dtype = options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    recipe = Recipe(dtype, options.keep, options.accumulate, options.z_loss)
    usual = _RATES[options.tune] if options.model else 3e-3
    return Settings(
        steps=options.steps,
        batch=options.batch,
        T=options.context,
        peak=usual if options.lr is None else options.lr,
        warmup=min(200, options.steps // 20) if options.warmup is None else options.warmup,
        end=options.end,
        decay=options.decay,
        clip=options.clip,
        seed=options.seed,
        recipe=recipe,
    )


def _tune(options: argparse.Namespace) -> "Kind":
    from llama_nb.train.tuning import Full, Lora, Norms

    if options.model is None and (options.tune != "full" or options.quant or options.chat):
        raise InputError(
            "--tune, --quant and --chat are for a trained model; name it with --model."
        )
    if options.tune == "lora":
        return Lora(options.rank, options.alpha, tuple(options.targets.split(",")))
    return Norms() if options.tune == "norms" else Full()


def _documents(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return what is learnt and what is held back; None where nothing is."""
    import datasets

    from llama_nb import data

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    read = data.conversations if options.chat else data.documents
    column = options.column or ("messages" if options.chat else "text")
    found = read(options.data, column=column, split=options.split, streaming=options.streaming)
    return data.split(found, options.held_out) if options.held_out else (found, None)


def _model(
    options: argparse.Namespace, learn: Any
) -> tuple["LlamaConfig", "Tokenizer", dict[str, Any] | None]:
    """Return the model's shape, its tokenizer, and the weights to start from, if any."""
    import jax

    from llama_nb import data, loading, presets
    from llama_nb.model import params_of

    if options.model is None:
        config = presets.get(options.preset)
        if options.tokenizer is None:
            tokenizer = data.train_bpe(_first(learn, _SAMPLE), options.vocab)
        else:
            tokenizer = _tokenizer(options.tokenizer)
        return dataclasses.replace(config, vocab_size=tokenizer.vocab_size), tokenizer, None
    if options.tokenizer is not None:
        raise InputError("--tokenizer is for a model with random weights; --model has its own.")
    # What is trained is float32; what is not may be what it is multiplied in.
    wide = options.tune == "full" or jax.default_backend() == "cpu"
    model, tokenizer = loading.load(
        options.model, dtype="float32" if wide else "bfloat16", quant=options.quant
    )
    return model.config, tokenizer, params_of(model)


def _tokenizer(name: str) -> "Tokenizer":
    from llama_nb import assets, loading, tokenizer

    return tokenizer.load(
        assets.fetch(assets.LLAMA3_TOKENIZER) if name == "llama3" else loading.locate(name)
    )


def _first(documents: Any, count: int) -> Any:
    """Return so many documents at most."""
    if hasattr(documents, "__len__"):
        return documents.select(range(min(count, len(documents))))
    return documents.take(count)


def _peak(chip: "Chip", mesh: "Mesh | None") -> float:
    """Return the FLOPs per second of all devices; virtual ones share the machine's."""
    import jax

    alone = mesh is None or jax.default_backend() == "cpu"
    return chip.flops * (1 if alone else mesh.size)


def _summary(run: "Run", tokenizer: "Tokenizer") -> str:
    from llama_nb.train.tuning import count

    settings, trained, kept = run.settings, count(run.params), count(run.frozen)
    share = f" of {trained + kept:,}, {trained / (trained + kept):.2%}" if kept else ""
    since = f", from step {run.step:,} on" if run.step else ""
    return (
        f"{trained:,} numbers to train{share}; vocabulary {tokenizer.vocab_size:,}\n"
        f"{settings.steps:,} steps of {settings.batch} x {settings.T} tokens, products in "
        f"{settings.recipe.dtype}{since}"
    )


def _eval(options: argparse.Namespace) -> None:
    from llama_nb import data, loading
    from llama_nb.model import params_of
    from llama_nb.train import evaluate

    if options.all:
        options.held_out = 0
    learn, held = _documents(options)
    model, tokenizer = loading.load(options.model, quant=options.quant)
    if options.context > model.config.context:
        raise InputError(
            f"--context {options.context} is longer than this model's, {model.config.context}."
        )
    tokenize = data.tokenize_chats if options.chat else data.tokenize
    found = tokenize(learn if held is None else held, tokenizer)
    total = len(found) if hasattr(found, "__len__") else 0
    with bar("scoring", total) as show:

        def counted() -> Iterator[dict[str, Any]]:
            for number, row in enumerate(found, 1):
                show(number, total or number)
                yield row

        score = evaluate(
            params_of(model), model.config, counted(), batch=options.batch, T=options.context
        )
    if options.json:
        print(json.dumps({"model": options.model, "data": options.data, **vars(score)}))
    else:
        print(_line(score))


def _line(score: "Score") -> str:
    return (
        f"loss {score.loss:.4f}, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_byte:.4f} bits per byte ({score.tokens:,} tokens, {score.bytes:,} bytes)"
    )
