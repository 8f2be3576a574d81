"""Products with int8 matrices on one TPU: which of them are a kernel's, and which are XLA's."""

import jax
import jax.numpy as jnp

from llama_nb.kernels import matmul_tpu
from llama_nb.kernels.choice import Choice

MOST_ROWS = 128
# XLA fetches smaller matrices while it computes something else; larger ones don't fit beside it.
LEAST_BYTES = 2**25
_ROWS = 8  # that a matrix unit multiplies as fast as one; one row is not taken for a matrix at all


def streams(choice: Choice | str | None, rows: int) -> bool:
    """Return whether products of so many rows go through `product`: on a TPU, while decoding."""
    kernels = isinstance(choice, Choice) and choice.kind == "pallas" and choice.platform == "tpu"
    return kernels and rows <= MOST_ROWS


def product(rows: jax.Array, values: jax.Array, outputs_first: bool = False) -> jax.Array:
    """Multiply (M, I) with int8 (I, O), or with the transpose of (O, I).

    Parameters
    ----------
    rows
        Shape (M, I), float; M is at most `MOST_ROWS`.
    values
        Shape (I, O), or (O, I) with `outputs_first`, int8.

    Returns
    -------
    jax.Array
        Shape (M, O), float32.
    """
    M = rows.shape[0]
    rows = jnp.pad(rows, ((0, max(0, _ROWS - M)), (0, 0)))
    if values.nbytes >= LEAST_BYTES:
        return matmul_tpu.matmul(rows, values, outputs_first=outputs_first)[:M]
    wide = values.astype(rows.dtype)
    wide = wide.T if outputs_first else wide
    return jnp.matmul(rows, wide, preferred_element_type=jnp.float32)[:M]
