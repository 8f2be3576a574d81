"""Cross-entropy: how surprised a model is by what comes next."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, targets: jax.Array, *, split: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return `-log softmax(logits)[target]`, and the logarithm of the softmax's denominator.

    Parameters
    ----------
    logits
        Shape (..., V), float32.
    targets
        Shape (...), integers in [0, V).
    split
        The vocabulary is split over devices: the target's logit is then a sum over a one-hot
        vector, to which each device adds its part, as a lookup would gather the logits first.

    Returns
    -------
    tuple of jax.Array
        Two of shape (...), in nats.
    """
    norm = jax.nn.logsumexp(logits, axis=-1)
    if split:
        one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
        return norm - (logits * one_hot).sum(-1), norm
    return norm - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], norm
