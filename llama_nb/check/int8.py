"""Exercises of chapter 11."""

from collections.abc import Callable

import numpy as np

from llama_nb import packed
from llama_nb.check.compare import Verdict, run


def quantize_outputs(function: Callable[[np.ndarray], tuple]) -> Verdict:
    """Check `f(weight (I, O)) -> (int8 (I, O), float32 (O,))`, one scale per output."""

    def cases():
        for inputs, outputs, about in ((16, 5, ""), (3, 40, ""), (8, 4, ", one output all zero")):
            rng = np.random.default_rng(inputs)
            weight = rng.normal(size=(inputs, outputs)).astype(np.float32)
            weight *= 10.0 ** rng.integers(-3, 2, outputs).astype(np.float32)  # loud and quiet ones
            if about:
                weight[:, 1] = 0
            values, scale = packed.to_int8(weight, 0, np)
            yield f"weights of shape {weight.shape}{about}", (weight,), (values, scale[0])

    return run("quantize_outputs", function, cases(), atol=1e-6)


def product_error_bound(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Check `f(x (M, I), scales (O,)) -> (M, O)`: the worst error of x times rounded weights.

    The worst case is real: weights half a scale off, each in the direction of its input.
    """

    def cases():
        for tokens, inputs, outputs in ((1, 6, 3), (4, 32, 8), (3, 1, 1)):
            rng = np.random.default_rng(inputs)
            x = rng.normal(size=(tokens, inputs))
            scales = rng.uniform(0.01, 2.0, outputs)
            expected = np.einsum("mi,mio->mo", x, np.sign(x)[:, :, None] * scales / 2)
            about = f"{tokens} tokens, {inputs} inputs and {outputs} outputs"
            yield about, (x, scales), expected.tolist()

    return run("product_error_bound", function, cases())


def write_int8(function: Callable[..., tuple]) -> Verdict:
    """Check `f(keys (S, K, H), scales (S, K), new (T, K, H), length) -> (keys, scales)`."""

    def cases():
        for S, T, lengths in ((8, 1, (3, 0)), (8, 5, (3, 0)), (6, 2, (4, 1))):
            rng = np.random.default_rng(S + T)
            keys = rng.integers(-127, 128, (S, 2, 4)).astype(np.int8)
            scales = rng.uniform(0.1, 1.0, (S, 2)).astype(np.float32)
            new = rng.normal(size=(T, 2, 4)).astype(np.float32)
            new *= rng.uniform(0.1, 10.0, (T, 2, 1)).astype(np.float32)
            values, scale = packed.to_int8(new, -1, np)
            expected = []
            for length in lengths:
                after, after_scales = keys.copy(), scales.copy()
                after[length : length + T] = values
                after_scales[length : length + T] = scale[..., 0]
                expected.append((after, after_scales))
            # The same arrays twice: an answer that writes into them spoils the second case.
            for length, result in zip(lengths, expected, strict=True):
                yield f"{T} keys after {length} in {S} slots", (keys, scales, new, length), result

    return run("write_int8", function, cases())


def int8_scores(function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Check `f(q (N, H), keys (S, K, H), scales (S, K)) -> (N, S)`: scaled scores of one query."""

    def cases():
        for N, K, S, H in ((4, 4, 5, 8), (6, 2, 3, 4), (8, 1, 7, 16)):
            rng = np.random.default_rng(N)
            q = rng.normal(size=(N, H)).astype(np.float32)
            keys = rng.integers(-127, 128, (S, K, H)).astype(np.int8)
            scales = rng.uniform(0.001, 0.05, (S, K)).astype(np.float32)
            wide = np.repeat(keys * scales[..., None].astype(np.float64), N // K, axis=1)  # (S,N,H)
            expected = np.einsum("nh,snh->ns", q, wide) / np.sqrt(H)
            yield f"{N} heads over {K}, {S} keys", (q, keys, scales), expected.tolist()

    return run("int8_scores", function, cases(), atol=1e-4)
