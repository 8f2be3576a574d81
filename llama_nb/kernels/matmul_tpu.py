"""A few rows times a large int8 matrix, for TPU: as fast as the matrix comes from memory.

XLA widens such a matrix first and multiplies afterwards, and waits for memory in between. Here the
grid's pipeline fetches the next block while this one is widened and multiplied.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
# Of one block, of which the pipeline holds two and the product one that is widened.
_BLOCK_BYTES = 2**21
_MOST_INPUTS = 4096


def matmul(
    rows: jax.Array, values: jax.Array, *, outputs_first: bool = False, interpret: Any = False
) -> jax.Array:
    """Multiply (M, I) with int8 (I, O), or with the transpose of (O, I).

    Parameters
    ----------
    rows
        Shape (M, I), float. All of it stays in fast memory: M is a batch, not a prompt.
    values
        Shape (I, O), or (O, I) with `outputs_first`, int8.
    interpret
        As in `pallas_call`.

    Returns
    -------
    jax.Array
        Shape (M, O), float32.
    """
    M, inputs = rows.shape
    outputs = values.shape[0 if outputs_first else 1]
    across, along = blocks(inputs, outputs)

    def weights(o, i):
        return (o, i) if outputs_first else (i, o)

    return pl.pallas_call(
        functools.partial(_kernel, outputs_first=outputs_first),
        grid=(pl.cdiv(outputs, along), inputs // across),
        in_specs=[
            pl.BlockSpec((M, across), lambda o, i: (0, i)),
            pl.BlockSpec(weights(along, across), weights),
        ],
        out_specs=pl.BlockSpec((M, along), lambda o, i: (0, o)),
        out_shape=jax.ShapeDtypeStruct((M, outputs), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * M * inputs * outputs,
            bytes_accessed=rows.nbytes + values.nbytes + 4 * M * outputs,
            transcendentals=0,
        ),
        interpret=interpret,
        name="matmul_int8",
    )(rows, values)


def blocks(inputs: int, outputs: int) -> tuple[int, int]:
    """Return how many inputs and outputs of a matrix are fetched at once.

    Inputs divide evenly, since what lies beyond the edge would be added up; outputs beyond the edge
    are dropped.
    """
    across = inputs
    if inputs % _LANES == 0:
        tiles = inputs // _LANES
        most = max(1, min(tiles, _MOST_INPUTS // _LANES))
        across = _LANES * max(n for n in range(1, most + 1) if tiles % n == 0)
    along = max(_LANES, _BLOCK_BYTES // across // _LANES * _LANES)
    return across, outputs if along >= outputs else along


def _kernel(rows: jax.Array, values: jax.Array, out: jax.Array, *, outputs_first: bool) -> None:
    """Add the product of one block to the sums of its outputs."""
    exact = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    part = jax.lax.dot_general(
        rows[...],
        values[...].astype(rows.dtype),
        (((1,), (1 if outputs_first else 0,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
    step = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        out[...] = part

    @pl.when(step > 0)
    def _():
        out[...] += part
