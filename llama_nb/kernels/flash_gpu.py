"""Flash attention for NVIDIA GPUs: cuDNN's, through `jax.nn.dot_product_attention`."""

import functools

import jax
import jax.numpy as jnp

from llama_nb.kernels.refusal import refusal


def available(dtype: jax.typing.DTypeLike, head_dim: int) -> str:
    """Return why cuDNN can't be used on this machine for such queries, or nothing if it can.

    The first answer on a GPU takes a second: it compiles a tiny case, so that whatever cuDNN does
    not like is a reason to use XLA and not a crash.
    """
    if jax.default_backend() not in ("gpu", "cuda"):
        return "there is no GPU"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"cuDNN's attention is for 16 bits, and this is {jnp.dtype(dtype)}"
    return _refusal(head_dim)


@functools.lru_cache
def _refusal(head_dim: int) -> str:
    x = jax.ShapeDtypeStruct((1, 64, 1, head_dim), jnp.bfloat16)
    numbers = jax.ShapeDtypeStruct((1,), jnp.int32)
    reason = refusal(flash_attention, x, x, x, numbers, numbers)
    return reason and f"cuDNN refuses: {reason}"


def flash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, starts: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Causal attention of prompts to themselves by cuDNN; see `flash.flash_attention`.

    cuDNN leaves out what lies after a sequence, not what lies before it. So text moves to the
    front and back: copies of T rows each, where a mask would be T rows of T.
    """
    T = q.shape[1]
    columns = jnp.arange(T)
    counts = jnp.clip(jnp.minimum(lengths, T) - starts, 0, T).astype(jnp.int32)
    forward = columns + starts[:, None]  # (B, T): where each column comes from

    def front(x):
        moved = jnp.take_along_axis(x, forward[:, :, None, None], axis=1, mode="clip")
        return jnp.where((columns < counts[:, None])[:, :, None, None], moved, 0)

    out = jax.nn.dot_product_attention(
        front(q),
        front(k),
        front(v),
        is_causal=True,
        # A sequence without text keeps one column, of zeros: no kernel need do without any.
        query_seq_lengths=jnp.maximum(counts, 1),
        key_value_seq_lengths=jnp.maximum(counts, 1),
        implementation="cudnn",
    )
    back = columns - starts[:, None]
    out = jnp.take_along_axis(out, back[:, :, None, None], axis=1, mode="clip")
    text = (back >= 0) & (back < counts[:, None])
    return jnp.where(text[:, :, None, None], out, 0)
