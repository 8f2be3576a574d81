"""What of a model is trained, and what stays as it is: everything, the norms, or adapters.

A tree of weights is divided into two of the same structure, each with None where the other has
the leaf. Gradients and moments exist for the trainable one only.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llama_nb.errors import InputError
from llama_nb.lora import LowRank, merge
from llama_nb.packed import Packed
from llama_nb.quantize import SHARED_AXES

# The projections, and how many of their leading axes are inputs.
TARGETS = {
    name: len(axes) for name, axes in SHARED_AXES.items() if name not in ("embed", "lm_head")
}
_NORMS = ("attn_norm", "mlp_norm", "norm")


@dataclasses.dataclass(frozen=True)
class Full:
    """Train every weight."""


@dataclasses.dataclass(frozen=True)
class Norms:
    """Train the gains of the norms: two vectors per layer, and the last one."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Train a change of low rank to some projections.

    Attributes
    ----------
    rank
        r, the numbers that a change goes through.
    alpha
        The change is multiplied with `alpha / rank`, so that other ranks need no other learning
        rate.
    targets
        Names of projections (`TARGETS`), the same in every layer.

    Raises
    ------
    InputError
        For a rank below 1, an alpha that is 0, or a name that is no projection's.

    References
    ----------
    Hu et al. 2021, section 4.1.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1 or not (math.isfinite(self.alpha) and self.alpha):
            raise InputError(
                f"rank is {self.rank} and alpha {self.alpha}; the rank must be at least 1, and "
                "alpha a number other than 0."
            )
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            named = f"{unknown[0]!r} is no projection" if unknown else "no projection is named"
            raise InputError(f"{named}; choose targets among {', '.join(TARGETS)}.")


Kind = Full | Norms | Lora

__all__ = ["TARGETS", "Full", "Kind", "Lora", "Norms", "combine", "count", "divide", "merge"]


def divide(params: dict[str, Any], kind: Kind, seed: int = 0) -> tuple[Any, Any]:
    """Divide weights into what is trained and what is not.

    Parameters
    ----------
    params
        From `model.params_of`; may be int8 where they aren't trained themselves.
    kind
        What is trained.
    seed
        Of LoRA's `a`, which is normal with standard deviation `1 / sqrt(inputs)`. `b` is 0, so
        nothing changes at first.

    Returns
    -------
    tuple
        `trainable`, copies in float32, since a step gives away the memory of what it updates; and
        `frozen`, the very arrays that were given. LoRA has a `LowRank` in place of each target.

    Raises
    ------
    InputError
        When the rank is larger than a target's smaller side, or int8 weights are to be trained.
    """
    key, drawn = jax.random.key(seed), 0

    def visit(node: Any, name: str | int) -> tuple[Any, Any]:
        nonlocal drawn
        if isinstance(node, dict):
            # In an order of their own, so that equal trees draw equal numbers.
            parts = {child: visit(node[child], child) for child in sorted(node)}
            return tuple({child: part[side] for child, part in parts.items()} for side in (0, 1))
        if isinstance(kind, Lora) and name in kind.targets:
            drawn += 1
            return _adapter(node, name, kind, jax.random.fold_in(key, drawn))
        if isinstance(kind, Full) or (isinstance(kind, Norms) and name in _NORMS):
            if isinstance(node, Packed):
                raise InputError(
                    f"{name} is kept in {node.values.dtype} and can't be trained so; load the "
                    "weights without quantization, or train adapters."
                )
            return jnp.array(node, jnp.float32), None
        return None, node

    return visit(params, "")


def _adapter(base: Any, name: str, kind: Lora, key: jax.Array) -> tuple[LowRank, LowRank]:
    """Return a new adapter of a weight, and the weight that waits for it."""
    inputs, outputs = base.shape[: TARGETS[name]], base.shape[TARGETS[name] :]
    side = min(math.prod(inputs), math.prod(outputs))
    if kind.rank > side:
        raise InputError(
            f"a rank of {kind.rank} is more than {name} has: its smaller side is {side}."
        )
    a = jax.random.normal(key, (*inputs, kind.rank)) * math.prod(inputs) ** -0.5
    b, scale = jnp.zeros((kind.rank, *outputs)), kind.alpha / kind.rank
    return LowRank(None, a, b, scale), LowRank(base, None, None, scale)


def combine(trainable: Any, frozen: Any) -> Any:
    """Return the whole tree again, for `model.with_params`; inside of a program, too."""
    if frozen is None:
        return trainable

    def one(mine: Any, other: Any) -> Any:
        return other if mine is None else mine

    return jax.tree.map(one, trainable, frozen, is_leaf=lambda leaf: leaf is None)


def count(tree: Any) -> int:
    """Return how many numbers a tree has."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
