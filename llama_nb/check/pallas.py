"""Exercises of chapter 20."""

import itertools
from collections.abc import Callable

import numpy as np

from llama_nb.check.compare import Verdict, run


def matmul_bytes(function: Callable[..., float]) -> Verdict:
    """Check `f(M, N, K, bm, bn, bk, itemsize) -> bytes` of a product in tiles, grid (m, n, k)."""

    def cases():
        for about, sizes, tiles in (
            ("tiles smaller than every side", (1024, 2048, 4096), (256, 512, 512)),
            ("one tile along K", (512, 768, 256), (128, 256, 256)),
            ("one tile along N", (512, 256, 1024), (128, 256, 256)),
            ("one tile along M", (128, 512, 1024), (128, 256, 256)),
            ("one tile along N and K", (512, 256, 128), (128, 256, 128)),
            ("one tile for all", (128, 256, 384), (128, 256, 384)),
        ):
            for itemsize in (2, 4):
                expected = itemsize * _walk(sizes, tiles)
                yield f"{about}, {itemsize} bytes a number", (*sizes, *tiles, itemsize), expected

    return run("matmul_bytes", function, cases(), atol=0.5)


def _walk(sizes: tuple[int, int, int], tiles: tuple[int, int, int]) -> int:
    (M, N, K), (bm, bn, bk) = sizes, tiles
    x, w, out = [], [], []
    for m, n, k in np.ndindex(M // bm, N // bn, K // bk):
        x.append((m, k))
        w.append((k, n))
        out.append((m, n))
    return _changes(x) * bm * bk + _changes(w) * bk * bn + _changes(out) * bm * bn


def _changes(visited: list[tuple[int, int]]) -> int:
    return 1 + sum(a != b for a, b in itertools.pairwise(visited))


def column_sums(function: Callable[[np.ndarray, int], np.ndarray]) -> Verdict:
    """Check `f(x, block) -> sums`: of the columns of x (T, D), in blocks of rows, T of any size."""

    def cases():
        rng = np.random.default_rng(20)
        for rows, block in ((8, 8), (24, 8), (20, 8), (3, 8), (40, 16)):
            x = rng.standard_normal((rows, 128)).astype(np.float32)
            yield f"{rows} rows in blocks of {block}", (x, block), x.sum(axis=0)

    return run("column_sums", function, cases(), atol=1e-4)


def largest_block(function: Callable[[int, int, int], int]) -> Verdict:
    """Check `f(D, itemsize, limit) -> rows`: the most rows of RMSNorm's block that fit VMEM."""

    def cases():
        for D, itemsize, limit in (
            (4096, 2, 16 * 2**20),
            (8192, 2, 16 * 2**20),
            (4096, 4, 16 * 2**20),
            (1024, 4, 2**20),
            (4096, 2, 64 * 2**20),
        ):
            expected = limit // (4 * D * itemsize + 4 * D) // 8 * 8
            yield f"D = {D}, {itemsize} bytes a number", (D, itemsize, limit), expected

    return run("largest_block", function, cases(), atol=0.5)
