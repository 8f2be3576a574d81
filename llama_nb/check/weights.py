"""Exercises of chapter 07."""

import json
import struct
from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run
from llama_nb.checkpoint.names import split_halves


def to_halves(function: Callable[[np.ndarray, int], np.ndarray]) -> Verdict:
    """Check `f(matrix, heads)`: rows of (heads H, D) from neighbouring pairs to split halves."""

    def cases():
        for heads, H, D in ((1, 8, 3), (2, 4, 5), (9, 64, 7)):
            rng = np.random.default_rng(H)
            matrix = rng.normal(size=(heads * H, D)).astype(np.float32)
            expected = split_halves(matrix.reshape(heads, H, D)).reshape(matrix.shape)
            yield f"{heads} heads of width {H}, D={D}", (matrix, heads), expected

    return run("to_halves", function, cases())


def piece_slices(function: Callable[[int, int, int, int], list[tuple[int, int, int]]]) -> Verdict:
    """Check `f(rows, pieces, start, stop)`: (file, first row in it, end in it), in order."""

    def cases():
        for rows, pieces, start, stop in (
            (1536, 3, 0, 1536),
            (1536, 3, 600, 700),
            (1536, 3, 500, 520),
            (8192, 8, 1024, 2048),
            (8192, 8, 1000, 4000),
            (64, 1, 3, 5),
        ):
            width, expected = rows // pieces, []
            for number in range(pieces):
                inside = [r - number * width for r in range(start, stop) if r // width == number]
                if inside:
                    expected.append((number, inside[0], inside[-1] + 1))
            about = f"rows {start} to {stop} of {rows} in {pieces} files"
            yield about, (rows, pieces, start, stop), expected

    return run("piece_slices", function, cases())


def find_tensor(function: Callable[[bytes, str], tuple]) -> Verdict:
    """Check `f(data, name) -> (dtype, shape, begin, end)`, the bytes' place in the file."""

    def cases():
        tensors = {
            "model.norm.weight": ("BF16", [6], 12),
            "model.embed_tokens.weight": ("F32", [5, 6], 120),
            "model.layers.0.mlp.gate_proj.weight": ("I8", [4, 6], 24),
        }
        for padding in (0, 3):
            table: dict[str, object] = {"__metadata__": {"format": "pt"}}
            begin = 0
            for name, (dtype, shape, size) in tensors.items():
                offsets = [begin, begin + size]
                table[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
                begin += size
            text = json.dumps(table).encode() + b" " * padding
            first = 8 + len(text)
            data = struct.pack("<Q", len(text)) + text + bytes(begin)
            for name, (dtype, shape, _) in tensors.items():
                low, high = table[name]["data_offsets"]
                about = f"{name} in a file with a header of {len(text)} bytes"
                yield about, (data, name), (dtype, shape, first + low, first + high)

    return run("find_tensor", function, cases())
