"""What int8 costs in perplexity, on enough text to tell.

The default model reads 20,000 tokens of Python's own manual, in windows of 512 that don't see each
other: in float32, with int8 weights, and with an int8 cache as well. Chapter 11 shows the result.

    python benchmarks/int8_perplexity.py [--save]

Takes about five minutes on two cores.
"""

import argparse
import os
from pydoc_data.topics import topics

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import machine

import llama_nb
from llama_nb import progress
from llama_nb.perplexity import perplexity

TOKENS, WINDOW = 20_000, 512
CASES = {
    "float32": (None, None),
    "int8 weights": ("int8", None),
    "int8 weights and cache": ("int8", "int8"),
}


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/int8_perplexity.json")
    options = parser.parse_args()
    found = {}
    for name, (quant, cache_dtype) in CASES.items():
        model, tokenizer = llama_nb.load("smollm2-135m", dtype=jnp.float32, quant=quant)
        manual = "\n".join(topics[topic] for topic in sorted(topics))
        ids = tokenizer.encode(manual)[:TOKENS]
        with progress.bar(f"reading with {name}", TOKENS) as show:
            found[name] = perplexity(
                model, ids, window=WINDOW, cache_dtype=cache_dtype, progress=show
            )
        print(f"{name:24}{found[name]:8.4f}{found[name] / found['float32'] - 1:+8.2%}", flush=True)
    if options.save:
        figures = {"tokens": TOKENS, "window": WINDOW, "perplexity": found}
        print("kept in", machine.save("int8_perplexity", figures))


if __name__ == "__main__":
    main()
