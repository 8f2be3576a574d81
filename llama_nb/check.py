"""Checks for the book's exercises: your function against the package's, on random inputs.

Each prints one sentence, and returns whether the function is right, so that
`assert check.rms_norm(mine)` fails where it is not.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from llama_nb.config import LlamaConfig

Case = tuple[str, tuple[Any, ...], Any]


def run(name: str, function: Callable, cases: Iterable[Case], atol: float = 1e-5) -> bool:
    """Call a function on every case and say what differs first, if anything does.

    Parameters
    ----------
    name
        Of the exercise, for the sentence.
    function
        The reader's.
    cases
        A description, the arguments, and the expected result of each.
    atol
        Largest absolute difference that counts as rounding.

    Returns
    -------
    bool
        Whether all cases agree.
    """
    count = 0
    for about, arguments, expected in cases:
        count += 1
        try:
            got = function(*arguments)
        except Exception as error:
            print(f"{name}: for {about}, it raised {type(error).__name__}: {error}")
            return False
        if wrong := difference(got, expected, atol):
            print(f"{name}: for {about}, {wrong}")
            return False
    print(f"{name}: right, on {count} cases.")
    return True


def difference(got: Any, expected: Any, atol: float = 1e-5) -> str:
    """Return in one sentence how a result differs from the expected one; empty if it doesn't."""
    if isinstance(expected, tuple):
        if not isinstance(got, tuple) or len(got) != len(expected):
            return f"it returned {_kind(got)}; a tuple of {len(expected)} is expected."
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            if wrong := difference(one, other, atol):
                return f"item {index}: {wrong}"
        return ""
    if got is None:
        return "it returned None; is the return statement missing?"
    if isinstance(expected, str) or (isinstance(expected, list) and str in map(type, expected)):
        return "" if got == expected else f"it returned {got!r}; {expected!r} is expected."
    try:
        left, right = np.asarray(got), np.asarray(expected)
    except Exception:
        return f"it returned {_kind(got)}; an array is expected."
    if left.dtype == object or left.dtype.kind in "US":
        return f"it returned {_kind(got)}; numbers are expected."
    if left.shape != right.shape:
        return f"its shape is {left.shape}; {right.shape} is expected."
    if hasattr(expected, "dtype") and left.dtype != right.dtype:
        return f"its dtype is {left.dtype}; {right.dtype} is expected."
    left, right = left.astype(np.float64), right.astype(np.float64)
    if not np.isfinite(left[np.isfinite(right)]).all():
        return "it holds NaN or infinity where a finite number is expected."
    with np.errstate(invalid="ignore"):
        off = np.where(left == right, 0.0, np.abs(left - right))
    if off.size == 0 or not off.max() > atol:
        return ""
    place = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    share = (off > atol).mean()
    where = f" at index {place}" if place else ""
    return f"values differ{where}: {left[place]:.6g} instead of {right[place]:.6g}" + (
        f", and in {share:.0%} of places by more than {atol:g}." if place else "."
    )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def top_tokens(function: Callable[[np.ndarray, int], tuple]) -> bool:
    """Check `f(logits, k) -> (ids, probabilities)`, likeliest first, for logits of shape (V,)."""

    def cases():
        for V, k, seed in ((10, 3, 0), (50, 1, 1), (200, 200, 2)):
            logits = np.random.default_rng(seed).normal(0, 3, V).astype(np.float32)
            weights = np.exp(logits - logits.max(), dtype=np.float64)
            ids = np.argsort(-logits)[:k]
            # Lists, so that any dtype and any kind of array will do.
            expected = ids.tolist(), (weights / weights.sum())[ids].tolist()
            yield f"V={V}, k={k}", (logits, k), expected

    return run("top_tokens", function, cases())


def cache_bytes(function: Callable[[LlamaConfig, int, int], int]) -> bool:
    """Check `f(config, tokens, itemsize) -> bytes` of a KV cache of one sequence."""
    from llama_nb import presets

    def cases():
        for name, tokens, itemsize in (
            ("smollm2-135m", 1, 4),
            ("llama3.1-8b", 8192, 2),
            ("llama1-7b", 2048, 2),
        ):
            config = presets.get(name)
            expected = config.cache_bytes_per_token(itemsize) * tokens
            about = f"{name}, {tokens} tokens of {itemsize} bytes"
            yield about, (config, tokens, itemsize), expected

    return run("cache_bytes", function, cases())
