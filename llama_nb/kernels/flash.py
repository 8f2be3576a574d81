"""Attention of whole prompts to themselves, without their score matrix."""

from typing import Any

import jax
import jax.numpy as jnp

from llama_nb import layers
from llama_nb.errors import InputError
from llama_nb.kernels.choice import Choice, dispatch
from llama_nb.kernels.ragged import check_ends

_DTYPES = ("float32", "bfloat16")


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    implementation: Choice | str | None = None,
    interpret: Any = False,
    block: tuple[int, int] | None = None,
) -> jax.Array:
    """Attend from every position of a prompt to the text up to it: causal, grouped, ragged.

    The text of sequence b is the columns `starts[b] <= t < lengths[b]`. What lies in the others,
    NaN included, has no effect, and their outputs are zeros.

    Forward only: training differentiates `layers.causal_attention`.

    Parameters
    ----------
    q
        Queries, shape (B, T, N, H), float32 or bfloat16.
    k, v
        Keys and values of the same positions, shape (B, T, K, H), with N a multiple of K; dtype of
        `q`.
    starts, lengths
        Shape (B,), integers; traced values are taken as between 0 and T.
    implementation
        None is the kernel of the platform that the program is compiled for: ours on TPU, cuDNN's on
        GPU where it takes the inputs, XLA elsewhere. "pallas" interprets the TPU kernel on CPU,
        "xla" is no kernel. A `Choice` is made already.
    interpret
        Run the TPU kernel in Pallas' interpreter: True, or `pltpu.InterpretParams(...)`.
    block
        Queries and keys that the TPU kernel takes at once, multiples of 8. By default they are
        chosen by the width of a group and the chip (`flash_tpu.block_sizes`).

    Returns
    -------
    jax.Array
        Shape (B, T, N, H), dtype of `q`.

    Raises
    ------
    InputError
        When shapes or dtypes don't fit together.

    References
    ----------
    Dao et al. 2022, "FlashAttention"; Dao 2023, algorithm 1.
    """
    _check(q, k, v, starts, lengths, block)

    def tpu(*arguments, chip, interpret):
        from llama_nb.kernels import flash_tpu

        return flash_tpu.flash_attention(*arguments, interpret=interpret, block=block, chip=chip)

    def gpu(q, *others):
        from llama_nb.kernels import flash_gpu

        attend = _xla if flash_gpu.available(q.dtype, q.shape[-1]) else flash_gpu.flash_attention
        return attend(q, *others)

    return dispatch(
        implementation, (q, k, v, starts, lengths), tpu=tpu, gpu=gpu, xla=_xla, interpret=interpret
    )


def _xla(q, k, v, starts, lengths):
    """Attend without a kernel: the scores of an eighth of the queries are written to memory."""
    T = q.shape[1]
    columns = jnp.arange(T)
    text = (columns >= starts[:, None]) & (columns < lengths[:, None])  # (B, T)
    v = jnp.where(text[:, :, None, None], v, 0)  # Weights of 0 don't undo a NaN.
    mask = layers.causal_mask(starts, 0, T, T)
    out = layers.causal_attention(q, k, v, mask, max(128, T // 8))
    return jnp.where(text[:, :, None, None], out, 0)


def _check(q, k, v, starts, lengths, block) -> None:
    """Raise `InputError` for what doesn't fit together."""
    if q.ndim != 4 or k.ndim != 4:
        raise InputError(
            f"q has shape {q.shape} and k {k.shape}; wanted (B, T, N, H) and (B, T, K, H)."
        )
    (B, T, N, H), K = q.shape, k.shape[2]
    if (*k.shape[:2], k.shape[3]) != (B, T, H) or 0 in (B, T, K, N, H) or N % K:
        raise InputError(
            f"q of shape {q.shape} (B, T, N, H) does not fit k of shape {k.shape} (B, T, K, H): "
            "B, T and H must be equal, N a multiple of K, and none of them 0."
        )
    if v.shape != k.shape:
        raise InputError(f"v has shape {v.shape} and k {k.shape}; they must be equal.")
    if q.dtype.name not in _DTYPES or not q.dtype == k.dtype == v.dtype:
        raise InputError(
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; all must be the same of "
            f"{' and '.join(_DTYPES)}."
        )
    check_ends(starts, lengths, B, T, f"prompts of {T} columns")
    if block is not None and (len(block) != 2 or any(size < 8 or size % 8 for size in block)):
        raise InputError(
            f"block is {block}; it must be two multiples of 8: how many queries, how many keys."
        )
