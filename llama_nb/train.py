"""One step of training: loss, gradients, update."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llama_nb.config import LlamaConfig
from llama_nb.model import with_params
from llama_nb.sharding import Layout


def next_token_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of each token given those before it, in nats.

    Parameters
    ----------
    logits
        Shape (B, T, V): row t scores token t + 1.
    tokens
        Shape (B, T).
    """
    # A sum over one-hot vectors, since the vocabulary may be split over devices.
    chosen = jax.nn.one_hot(tokens[:, 1:], logits.shape[-1], dtype=logits.dtype)
    return -(jax.nn.log_softmax(logits[:, :-1]) * chosen).sum(-1).mean()


@functools.partial(
    jax.jit,
    static_argnames=("config", "optimizer", "layout"),
    donate_argnames=("params", "state"),
)
def train_step(
    params: dict[str, Any],
    state: Any,
    tokens: jax.Array,
    *,
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
) -> tuple[dict[str, Any], Any, jax.Array]:
    """Take one step: float32 weights and moments, bfloat16 products.

    Between forward and backward pass only the stream between the layers is kept.

    Parameters
    ----------
    params
        From `model.params_of`, float32.
    state
        Of the optimizer.
    tokens
        Shape (B, T).
    config, optimizer, layout
        Static.

    Returns
    -------
    tuple
        New parameters, new state, and the loss before the step.
    """

    def loss(params: dict[str, Any]) -> jax.Array:
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        model = with_params(config, half, layout)
        return next_token_loss(model.logits(model.hidden(tokens, remat=True)[0]), tokens)

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value
