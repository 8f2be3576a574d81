"""Exercises of chapter 23."""

from collections.abc import Callable

from llama_nb import presets
from llama_nb.check.compare import Verdict, run
from llama_nb.config import LlamaConfig


def longest_talk(function: Callable[[LlamaConfig, float, float, int], int]) -> Verdict:
    """Check `f(config, room, weight_bytes, cache_bytes) -> tokens` of one conversation.

    Weights take `weight_bytes` each and every number of the cache `cache_bytes`; the answer is 0
    where the weights alone do not fit, and never more than the model's context.
    """

    def cases():
        for name, room, weight, cache in (
            ("llama3.1-8b", 14.5e9, 1, 2),
            ("llama3.1-8b", 14.5e9, 2, 2),
            ("llama3.1-8b", 30e9, 2, 1),
            ("smollm2-135m", 14.5e9, 4, 4),
            ("llama3.1-70b", 130e9, 1, 2),
        ):
            config = presets.get(name)
            left = room - config.param_count() * weight
            tokens = max(0, int(left // config.cache_bytes_per_token(cache)))
            about = f"{name} in {room / 1e9:g} GB, {weight} bytes a weight, {cache} in the cache"
            yield about, (config, room, weight, cache), min(tokens, config.context)

    return run("longest_talk", function, cases())


def host_peak(function: Callable[[list[int], int, int], int]) -> Verdict:
    """Check `f(sizes, stored, kept) -> bytes`: the most that are held while tensors stream in.

    Tensors of `sizes` numbers are read one after another at `stored` bytes a number. Each is turned
    into `kept` bytes a number beside what it was read as, which is then dropped.
    """

    def cases():
        for sizes, stored, kept, about in (
            ([8], 2, 1, "one tensor"),
            ([4, 4, 4, 4], 2, 1, "four alike"),
            ([100, 4, 4, 4], 2, 1, "the largest first"),
            ([4, 4, 4, 100], 2, 1, "the largest last"),
            ([525, 58, 176, 58, 176, 525], 2, 1, "a small Llama, in millions"),
            ([10, 60, 30], 2, 2, "nothing made smaller"),
        ):
            done, peak = 0, 0
            for size in sizes:
                done += kept * size
                peak = max(peak, done + stored * size)
            yield about, (sizes, stored, kept), peak

    return run("host_peak", function, cases())


def whole_step(function: Callable[[tuple[int, float], tuple[int, float], int], float]) -> Verdict:
    """Check `f((layers, seconds), (layers, seconds), wanted) -> seconds` of `wanted` layers.

    A step takes as long for each layer, and something for embedding and head.
    """

    def cases():
        for few, more, wanted, layer, rest in (
            (2, 4, 32, 0.02, 0.06),
            (1, 3, 80, 0.5, 1.25),
            (8, 2, 16, 1.0, 0.25),
        ):
            points = [(layers, layers * layer + rest) for layers in (few, more)]
            about = f"{few} and {more} layers measured, {wanted} wanted"
            yield about, (*points, wanted), wanted * layer + rest

    return run("whole_step", function, cases())
