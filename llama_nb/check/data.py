"""Exercises of chapter 12."""

import hashlib
import math
from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def bits_per_byte(function: Callable[[list[tuple]], float]) -> Verdict:
    """Check `f(batches) -> bits per byte`, each batch losses (B, T), weights (B, T) and bytes."""

    def cases():
        rng = np.random.default_rng(0)
        for about, shapes, padded in (
            ("one full batch", [(2, 8)], 0),
            ("a batch with padding", [(2, 8)], 5),
            ("batches of unequal size", [(4, 8), (1, 3)], 2),
        ):
            batches, bits, size = [], 0.0, 0
            for shape in shapes:
                losses = rng.gamma(4.0, 1.0, shape).astype(np.float32)
                weights = np.ones(shape, np.float32)
                weights.flat[weights.size - padded :] = 0
                count = int(weights.sum() * rng.uniform(2, 5))
                batches.append((losses, weights, count))
                bits += float((losses.astype(np.float64) * weights).sum()) / math.log(2)
                size += count
            yield about, (batches,), bits / size

    return run("bits_per_byte", function, cases())


def kept_out(function: Callable[[str, float], bool]) -> Verdict:
    """Check `f(text, fraction) -> bool`: whether a text is for validation.

    By sha256 of the text, its letters lower-cased and each run of white space made one space: the
    first 4 bytes, as a big-endian number, against `fraction` of all such numbers.
    """

    def side(text: str, fraction: float) -> bool:
        plain = " ".join(text.lower().split())
        number = int.from_bytes(hashlib.sha256(plain.encode()).digest()[:4], "big")
        return number < fraction * 2**32

    def cases():
        for fraction in (0.1, 0.5):
            for i in range(40):
                text = f"document {i}"
                yield f"{text!r}, {fraction:.0%}", (text, fraction), side(text, fraction)
        for i in range(20):
            text = f"  Document\n\t{i} "
            yield f"the near copy {text!r}, 50%", (text, 0.5), side(text, 0.5)
        for i in range(20):
            text = f"Überschrift {i}"
            yield f"{text!r}, 50%", (text, 0.5), side(text, 0.5)

    return run("kept_out", function, cases())


def first_fit(function: Callable[[list[int], int], list[int]]) -> Verdict:
    """Check `f(lengths, T) -> rows`: the first row of T tokens that has room for each document."""

    def place(lengths: list[int], T: int) -> list[int]:
        room: list[int] = []
        found = []
        for length in lengths:
            fits = [row for row, left in enumerate(room) if left >= length]
            if not fits:
                room.append(T)
            row = fits[0] if fits else len(room) - 1
            room[row] -= length
            found.append(row)
        return found

    def cases():
        rng = np.random.default_rng(0)
        for lengths, T in (
            ([3, 4], 8),
            ([5, 5, 3, 3], 8),
            ([8, 8], 8),
            ([6, 7, 2, 1], 8),
            (rng.integers(1, 33, 30).tolist(), 32),
        ):
            about = f"lengths {lengths} in rows of {T}" if len(lengths) < 9 else "30 documents"
            yield about, (lengths, T), place(lengths, T)

    return run("first_fit", function, cases())
