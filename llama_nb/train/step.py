"""One step of training: loss, gradients, update."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llama_nb import compat
from llama_nb.config import LlamaConfig
from llama_nb.data.packing import Batch
from llama_nb.errors import InputError
from llama_nb.loss import cross_entropy
from llama_nb.model import with_params
from llama_nb.packed import Packed
from llama_nb.sharding import Layout
from llama_nb.train.tuning import combine

# What the forward pass keeps of each layer for the backward pass; what is not kept is computed
# twice. "products" are outputs of products with weights: most of the time, a part of the memory.
REMAT = {
    "nothing": None,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a step computes; a static argument.

    Attributes
    ----------
    dtype
        Of products: "bfloat16" or "float32". Weights, moments and sums are float32.
    keep
        Of `REMAT`: what is kept between forward and backward pass.
    accumulate
        Pieces in which a batch is computed, one after the other: the same step in less memory.
    z_loss
        Weight of the mean squared logarithm of the softmax's denominator, which keeps logits from
        drifting (Chowdhery et al. 2022, section 5); 0 for none.

    Raises
    ------
    InputError
        For a name or number that is none.
    """

    dtype: str = "bfloat16"
    keep: str = "nothing"
    accumulate: int = 1
    z_loss: float = 0.0

    def __post_init__(self):
        if self.dtype not in ("bfloat16", "float32"):
            raise InputError(f"dtype {self.dtype!r} is unknown; known: bfloat16, float32.")
        if self.keep not in REMAT:
            raise InputError(f"keep {self.keep!r} is unknown; known: {', '.join(REMAT)}.")
        if self.accumulate < 1 or self.z_loss < 0:
            raise InputError(
                f"accumulate is {self.accumulate} and z_loss {self.z_loss}; they must be at least "
                "1 and 0."
            )


def losses(
    params: Any, batch: Batch, *, config: LlamaConfig, layout: Layout | None, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """Return every target's cross-entropy and the logarithm of its softmax's denominator.

    Returns
    -------
    tuple of jax.Array
        Two of shape (B, T), float32, in nats.
    """

    def cast(leaf: Any) -> Any:
        return leaf if isinstance(leaf, Packed) else leaf.astype(recipe.dtype)

    wanted = jax.tree.map(cast, params, is_leaf=lambda leaf: isinstance(leaf, Packed))
    model = with_params(config, wanted, layout)
    hidden, _ = model.hidden(
        batch.tokens,
        positions=batch.positions,
        segments=batch.segments,
        remat=recipe.keep != "everything",
        policy=REMAT[recipe.keep],
    )
    return cross_entropy(model.logits(hidden), batch.targets, split=layout is not None)


@functools.partial(
    jax.jit,
    static_argnames=("config", "optimizer", "layout", "recipe"),
    donate_argnames=compat.GIVEN_AWAY,
)
def train_step(
    params: Any,
    state: Any,
    batch: Batch,
    *,
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
    recipe: Recipe = Recipe(),
    frozen: Any = None,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Take one step.

    Parameters
    ----------
    params
        What is trained, float32: from `model.params_of`, or the first part of `tuning.divide`.
        They are given away, as is the state: don't use either again.
    state
        Of the optimizer.
    batch
        B rows, a multiple of `recipe.accumulate`.
    config, optimizer, layout, recipe
        Static.
    frozen
        What is not trained, the second part of `tuning.divide`, in any dtype; kept.

    Returns
    -------
    tuple
        New parameters, new state, and numbers from before the update: `loss`, the mean
        cross-entropy per counted target; `norm`, the length of the gradient; `tokens`, how many
        targets counted.
    """
    weights = jnp.ones(batch.tokens.shape, jnp.float32) if batch.weights is None else batch.weights
    tokens = weights.sum()
    total = jnp.maximum(tokens, 1)

    def objective(params: Any, part: Batch) -> tuple[jax.Array, jax.Array]:
        whole = combine(params, frozen)
        loss, norm = losses(whole, part, config=config, layout=layout, recipe=recipe)
        loss = (loss * part.weights).sum() / total
        squares = (norm**2 * part.weights).sum() / total
        return loss + recipe.z_loss * squares, loss

    gradient = jax.value_and_grad(objective, has_aux=True)
    batch = dataclasses.replace(batch, weights=weights)
    if recipe.accumulate == 1:
        (_, loss), gradients = gradient(params, batch)
    else:
        loss, gradients = _in_parts(gradient, params, batch, recipe.accumulate)
    updates, state = optimizer.update(gradients, state, params)
    numbers = {"loss": loss, "norm": optax.global_norm(gradients), "tokens": tokens}
    return optax.apply_updates(params, updates), state, numbers


def _in_parts(gradient: Any, params: Any, batch: Batch, count: int) -> tuple[jax.Array, Any]:
    """Return the loss and gradients of a batch, computed `count` rows apart."""

    def cut(x: jax.Array) -> jax.Array:
        # Rows that lie on one device stay there: every part takes some of each.
        return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        (_, loss), gradients = gradient(params, part)
        return jax.tree.map(jnp.add, sums, (loss, gradients)), None

    zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, jax.tree.map(cut, batch))[0]
