"""One function against expected results: what differs first, in one sentence."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Case = tuple[str, tuple[Any, ...], Any]


class Verdict(int):
    """Whether all is right, which a notebook does not show: a sentence has said it already."""

    def _ipython_display_(self) -> None:
        pass


def run(name: str, function: Callable, cases: Iterable[Case], atol: float = 1e-5) -> Verdict:
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
    Verdict
        True if all cases agree.
    """
    count = 0
    for about, arguments, expected in cases:
        count += 1
        try:
            got = function(*arguments)
        except Exception as error:
            print(f"{name}: for {about}, it raised {type(error).__name__}: {error}")
            return Verdict(False)
        if wrong := difference(got, expected, atol):
            print(f"{name}: for {about}, {wrong}")
            return Verdict(False)
    print(f"{name}: right, on {count} cases.")
    return Verdict(True)


def difference(got: Any, expected: Any, atol: float = 1e-5) -> str:
    """Return in one sentence how a result differs from the expected one; empty if it doesn't."""
    if got is None:
        return "it returned None; is the return statement missing?"
    if isinstance(expected, tuple):
        if not isinstance(got, tuple) or len(got) != len(expected):
            return f"it returned {_kind(got)}; a tuple of {len(expected)} is expected."
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            if wrong := difference(one, other, atol):
                return f"item {index}: {wrong}"
        return ""
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
