"""`generate`: a prompt continued."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from llama_nb.cli.options import add_mesh, add_model, mesh_of
from llama_nb.errors import InputError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    generate = commands.add_parser("generate", help="continue a prompt")
    generate.set_defaults(run=run)
    generate.add_argument("prompt", metavar="PROMPT")
    add_model(generate)
    generate.add_argument("--chat", action="store_true", help="wrap the prompt as a user message")
    generate.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="0: off")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1: off")
    generate.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0: off")
    generate.add_argument("--seed", type=int, default=0, metavar="S")
    generate.add_argument(
        "--chunk", type=int, default=1, metavar="N", help="choose N tokens per dispatch"
    )
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end")
    generate.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the weights")
    generate.add_argument("--cache", choices=["int8"], help="keep keys and values in int8")
    add_mesh(generate, "2d")
    generate.add_argument("--attention", default="auto", metavar="A", help="auto, xla, pallas")


def run(options: argparse.Namespace) -> None:
    """Load a model and print what it says."""
    import jax

    from llama_nb import generation, loading
    from llama_nb.sampling import Sampling

    settings = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": options.seed,
    }
    Sampling(**settings)  # Say what is wrong before loading anything.
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {options.max_new_tokens}; it must be 1 or more.")
    if options.chunk < 1:
        raise InputError(f"--chunk is {options.chunk}; it must be 1 or more.")
    if not options.prompt:
        raise InputError("the prompt is empty; give the model some text to continue.")
    mesh = mesh_of(options)
    model, tokenizer = loading.load(
        options.model,
        dtype=options.dtype,
        quant=options.quant,
        mesh=mesh,
        strategy=options.strategy,
        attention_impl=options.attention,
    )
    if options.attention == "pallas" and jax.default_backend() == "cpu":
        print(
            "llama-nb: on CPU the kernels are interpreted, which is slow; leave --attention out.",
            file=sys.stderr,
        )
    if model.layout is not None and model.config.num_heads % model.layout.size("heads"):
        print(
            f"llama-nb: {model.config.num_heads} query heads can't be split into "
            f"{model.layout.size('heads')} equal parts; attention stays whole on every device.",
            file=sys.stderr,
        )
    arguments = {
        "max_new_tokens": options.max_new_tokens,
        "chat": options.chat,
        "cache_dtype": options.cache,
        "chunk": options.chunk,
        **settings,
    }
    if options.json:
        (done,) = generation.complete(model, tokenizer, [options.prompt], **arguments)
        print(json.dumps(dataclasses.asdict(done), ensure_ascii=False))
        return
    for piece in generation.stream(model, tokenizer, options.prompt, **arguments):
        print(piece, end="", flush=True)
    print()
