"""Exercises of chapter 10."""

from collections.abc import Callable

from llama_nb import presets, roofline
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig
from llama_nb.hardware import CHIPS, Chip


def product_intensity(function: Callable[[int, int, int, int], float]) -> Verdict:
    """Check `f(tokens, inputs, outputs, itemsize) -> FLOPs per byte` of `x @ weights`."""

    def cases():
        for tokens, inputs, outputs, itemsize in (
            (1, 4096, 4096, 2),
            (64, 8192, 28_672, 1),
            (2048, 576, 1536, 4),
        ):
            moved = itemsize * (tokens * inputs + inputs * outputs + tokens * outputs)
            expected = 2 * tokens * inputs * outputs / moved
            about = f"{tokens} tokens, {inputs} to {outputs} features of {itemsize} bytes"
            yield about, (tokens, inputs, outputs, itemsize), expected

    return run("product_intensity", function, cases())


def largest_batch(function: Callable[[LlamaConfig, Chip, int, int], int]) -> Verdict:
    """Check `f(config, chip, context, itemsize) -> sequences` that fit beside the weights."""

    def cases():
        for name, chip, context, itemsize in (
            ("llama3.1-8b", "TPU v6e", 8192, 2),
            ("llama3.1-8b", "TPU v5e", 2048, 1),
            ("llama3.1-70b", "H100", 2048, 2),  # the weights alone are too many
            ("llama2-7b", "H100", 4096, 2),
        ):
            config, one = presets.get(name), CHIPS[chip]
            left = one.capacity - config.param_count() * itemsize
            expected = max(0, int(left // (context * config.cache_bytes_per_token(itemsize))))
            about = f"{name} on {chip}, context {context}, {itemsize} bytes a number"
            yield about, (config, one, context, itemsize), expected

    return run("largest_batch", function, cases())


def decode_floor(function: Callable[[LlamaConfig, Chip, int, int, int, int], float]) -> Verdict:
    """Check `f(config, chip, chips, batch, context, itemsize) -> seconds` of a decode step.

    Bytes only; the result may leave out the embedding's rows and the cache's writes, less than a
    part in a thousand.
    """

    def cases():
        for name, chip, chips, batch, context, itemsize in (
            ("llama3.1-70b", "TPU v5e", 16, 8, 2048, 1),
            ("llama3.1-8b", "H100", 1, 1, 8192, 2),
            ("llama2-7b", "TPU v5p", 2, 4, 4096, 2),
        ):
            config, one = presets.get(name), CHIPS[chip]
            step = roofline.decode(batch, context, weights=itemsize, cache=itemsize)
            expected = 1e3 * roofline.floor(config, step, one, chips).memory
            about = f"{name} on {chips} x {chip}, batch {batch}, context {context} (in ms)"
            yield about, (config, one, chips, batch, context, itemsize), expected

    def milliseconds(*arguments):
        seconds = function(*arguments)
        return None if seconds is None else 1e3 * seconds

    return run("decode_floor", milliseconds, cases(), atol=0.01)
