"""What the TPU interpreter reports reaches the caller, in every version of JAX."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llama_nb import compat

X = jnp.arange(16 * 128.0).reshape(16, 128)


def copying(x_ref, o_ref, buffer, semaphore, *, wait):
    copy = pltpu.make_async_copy(x_ref, buffer, semaphore)
    copy.start()
    if wait:
        copy.wait()
    o_ref[...] = buffer[...]
    if not wait:
        copy.wait()


def copied(interpret, wait):
    return pl.pallas_call(
        functools.partial(copying, wait=wait),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype),
        scratch_shapes=[pltpu.VMEM(X.shape, X.dtype), pltpu.SemaphoreType.DMA],
        interpret=interpret,
    )(X)


def shifting(x_ref, o_ref, *, by):
    o_ref[...] = x_ref[pl.ds(by + 8 * pl.program_id(0), 8), :]


def shifted(interpret, by):
    return pl.pallas_call(
        functools.partial(shifting, by=by),
        grid=(1,),
        in_specs=[pl.BlockSpec(X.shape, lambda i: (0, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 128), X.dtype),
        interpret=interpret,
    )(X)


def adding(x_ref, o_ref):
    pl.when(pl.program_id(0) == 0)(lambda: o_ref.__setitem__(..., jnp.zeros_like(o_ref)))
    o_ref[...] += x_ref[...]


def added(interpret, meaning):
    return pl.pallas_call(
        adding,
        grid=(2,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 128), X.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=(meaning,)),
        interpret=interpret,
    )(X)


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "cores", "said"),
    [
        (copied, True, False, 1, "RACE DETECTED"),
        (added, "arbitrary", "parallel", 2, "RACE DETECTED"),
        (shifted, 8, 9, 1, "IndexError: Out-of-bounds read"),
    ],
)
def test_a_wrong_kernel_is_reported_and_a_right_one_is_not(kernel, right, wrong, cores, said):
    report = compat.kernel_complaint(lambda strict: kernel(strict, wrong), cores=cores)
    assert report.startswith(said)
    assert "clock" not in report and "Traceback" not in report
    assert not compat.kernel_complaint(lambda strict: kernel(strict, right), cores=cores)
