"""Ragged decode attention: one query per sequence, and only the filled part of its cache."""

from typing import Any

import jax
import jax.numpy as jnp

from llama_nb.errors import InputError
from llama_nb.kernels import decode_xla
from llama_nb.kernels.choice import Choice, dispatch, own_chip
from llama_nb.kernels.ragged import NOTHING, check_ends

_LANES = 128
# Bytes that a device reads of its memory in a microsecond, by the names JAX gives it, and most for
# one block: keys and values have two copies each in a fast memory of which 16 MB are a kernel's.
_MICROSECOND = {
    "TPU v4": 600_000,
    "TPU v5 lite": 819_000,
    "TPU v5": 2_765_000,
    "TPU v5p": 2_765_000,
    "TPU v6 lite": 1_638_000,
    "TPU7x": 3_690_000,
}
_MOST_BYTES = 2**21
_FLOATS, _KEPT = ("float32", "bfloat16", "float16"), ("float32", "bfloat16", "float16", "int8")


def decode_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
    implementation: Choice | str | None = None,
    interpret: Any = False,
    block: int | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attend from one query per sequence to the slots from `starts` up to `lengths` of its cache.

    What lies in other slots, NaN included, has no effect. A sequence without slots gets zeros.

    Parameters
    ----------
    q
        Queries, shape (B, N, H), float.
    keys, values
        Shape (B, K, S, H) with N a multiple of K, as `KVCache` holds them: float, or int8.
    starts, lengths
        Shape (B,), integers: sequence b has the slots `starts[b] <= s < lengths[b]`, none if
        `lengths[b] <= starts[b]`. Traced values are taken as between 0 and S.
    key_scales, value_scales
        Of int8: float32, shape (B, K, S). Otherwise None.
    implementation
        None is the kernel of the platform that the program is compiled for, and XLA on CPU and
        where there is no kernel. "pallas" interprets the TPU kernel on CPU, "xla" is no kernel. A
        `Choice` is made already.
    interpret
        Run the TPU kernel in Pallas' interpreter: True, or `pltpu.InterpretParams(...)`.
    block
        Slots that the kernel reads at once: S, or a multiple of 128. By default it is chosen by
        the chip (`block_slots`).
    return_lse
        Also return what is needed to join attention to several parts of a cache.

    Returns
    -------
    jax.Array or tuple
        Shape (B, N, H), dtype of `q`. With `return_lse` float32, and the logarithm of each
        softmax's denominator, shape (B, N), float32; `NOTHING` where there are no slots.

    Raises
    ------
    InputError
        When shapes, dtypes or lengths don't fit together.

    References
    ----------
    Dao et al. 2023, "Flash-Decoding"; Ainslie et al. 2023 for grouped queries.
    """
    _check(q, keys, values, starts, lengths, key_scales, value_scales)
    B, N, H = q.shape
    K, S = keys.shape[1:3]
    if block is not None and (not 0 < block <= S or (block != S and block % _LANES)):
        raise InputError(f"block is {block}; it must be all {S} slots or a multiple of 128 below.")
    starts, lengths = (jnp.clip(x, 0, S).astype(jnp.int32) for x in (starts, lengths))
    scales = () if key_scales is None else (key_scales, value_scales)

    def tpu(q, keys, values, starts, lengths, *scales, chip, interpret):
        from llama_nb.kernels import decode_tpu

        size = block or block_slots(K, S, H, keys.dtype.itemsize, chip)
        return decode_tpu.decode_attention(
            q, keys, values, starts, lengths, scales, scale=H**-0.5, block=size, interpret=interpret
        )

    def gpu(q, keys, values, starts, lengths, *scales):
        from llama_nb.kernels import decode_gpu

        if decode_gpu.available(keys):
            return _xla(q, keys, values, starts, lengths, *scales)
        scaled = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
        return decode_gpu.decode_attention(scaled, keys, values, starts, lengths, *scales)

    out, lse = dispatch(
        implementation,
        (q.reshape(B, K, N // K, H), keys, values, starts, lengths, *scales),
        tpu=tpu,
        gpu=gpu,
        xla=_xla,
        interpret=interpret,
    )
    out = out.reshape(B, N, H)
    return (out, lse.reshape(B, N)) if return_lse else out.astype(q.dtype)


def block_slots(K: int, S: int, H: int, itemsize: int, chip: str | None = None) -> int:
    """Return how many slots the TPU kernel should read at once.

    A step of the grid costs a fraction of a microsecond whatever it does, and of a sequence's last
    block half is read in vain: so about as much as the chip reads in a microsecond, less where the
    pipeline's two copies of keys and values would not fit its fast memory.

    Parameters
    ----------
    itemsize
        Bytes per number of the cache.
    chip
        As JAX names it; by default this process's TPU, else the slowest.
    """
    chip = chip or own_chip()
    per_slot = K * max(H, _LANES) * itemsize
    size = min(_MICROSECOND.get(chip, min(_MICROSECOND.values())), _MOST_BYTES) // per_slot
    block = max(_LANES, 1 << int(size).bit_length() - 1) if size else _LANES
    return S if block >= S else block


def _xla(q, keys, values, starts, lengths, key_scales=None, value_scales=None):
    """Attend without a kernel: all slots are read."""
    slots = jnp.arange(keys.shape[2])
    seen = ((slots < lengths[:, None]) & (slots >= starts[:, None]))[:, None]  # (B, 1, S)
    if value_scales is None:
        values = jnp.where(seen[..., None], values, 0)  # 0 times NaN would be NaN.
    else:
        value_scales = jnp.where(seen, value_scales, 0)
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    part = decode_xla.attention(q, keys, values, starts, lengths, key_scales, value_scales)
    empty = (lengths <= starts)[:, None, None, None]
    out = jnp.where(empty, 0, part.mixed / part.total)
    return out, jnp.where(empty, NOTHING, part.largest + jnp.log(part.total))[..., 0]


def _check(q, keys, values, starts, lengths, key_scales, value_scales) -> None:
    """Raise `InputError` for what doesn't fit together."""
    if q.ndim != 3 or keys.ndim != 4:
        raise InputError(
            f"q has shape {q.shape} and keys {keys.shape}; wanted (B, N, H) and (B, K, S, H)."
        )
    (B, N, H), (_, K, S, _) = q.shape, keys.shape
    if (keys.shape[0], keys.shape[3]) != (B, H) or K == 0 or N % K or 0 in (B, N, S, H):
        raise InputError(
            f"q of shape {q.shape} (B, N, H) does not fit keys of shape {keys.shape} (B, K, S, H): "
            "B and H must be equal, N a multiple of K, and none of them 0."
        )
    if values.shape != keys.shape or values.dtype != keys.dtype:
        raise InputError(
            f"values are {values.dtype}{list(values.shape)} and keys {keys.dtype}"
            f"{list(keys.shape)}; both must have the same shape and dtype."
        )
    if q.dtype.name not in _FLOATS or keys.dtype.name not in _KEPT:
        raise InputError(
            f"q is {q.dtype} and keys are {keys.dtype}; known: {', '.join(_FLOATS)} for q, and for "
            "keys also int8."
        )
    for name, scale in (("key_scales", key_scales), ("value_scales", value_scales)):
        if (keys.dtype == jnp.int8) != (scale is not None):
            raise InputError(
                f"{name} is {'missing' if scale is None else 'given'}, and keys are {keys.dtype}; "
                "int8 needs scales and floats have none."
            )
        if scale is not None and (scale.shape != (B, K, S) or scale.dtype != jnp.float32):
            raise InputError(
                f"{name} is {scale.dtype}{list(scale.shape)}; wanted float32{[B, K, S]}."
            )
    check_ends(starts, lengths, B, S, f"a cache of {S} slots")
