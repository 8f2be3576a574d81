"""AdamW as large language models are trained with it."""

import functools
from typing import Any

import jax
import optax

from llama_nb.errors import InputError


def schedule(peak: float, steps: int, warmup: int, end: float = 0.1) -> optax.Schedule:
    """Return the learning rate of every step: up in a line, down along half a cosine.

    Parameters
    ----------
    peak
        The largest.
    steps, warmup
        Of the whole run, and until the peak.
    end
        Where it ends, as a share of the peak.

    Raises
    ------
    InputError
        When the numbers don't make a schedule.

    References
    ----------
    Loshchilov and Hutter 2017, equation 5; Llama 3's is Grattafiori et al. 2024, section 3.4.1.
    """
    if not (peak > 0 and 0 <= warmup < steps and 0 <= end <= 1):
        raise InputError(
            f"peak {peak}, warmup {warmup}, steps {steps} and end {end} are no schedule: the peak "
            "must be above 0, the warmup shorter than the run, and the end within 0 and 1."
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak * end)


@functools.cache
def adamw(
    peak: float,
    steps: int,
    warmup: int,
    *,
    end: float = 0.1,
    decay: float = 0.1,
    clip: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.95,
) -> optax.GradientTransformation:
    """Return AdamW with a schedule, decay of matrices only, and a limit to the gradient's length.

    Equal arguments return the same object, so that a compiled step is found again.

    Parameters
    ----------
    peak, steps, warmup, end
        As in `schedule`.
    decay
        Times the learning rate: the share of itself that every matrix loses in a step. Gains of
        norms are kept: their size is what they say.
    clip
        Longest gradient, all parameters together; longer ones are scaled down.
    b1, b2
        How slowly the means of gradients and of their squares forget.

    References
    ----------
    Loshchilov and Hutter 2019, algorithm 2; Pascanu et al. 2013 for clipping.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(
            schedule(peak, steps, warmup, end), b1=b1, b2=b2, weight_decay=decay, mask=matrices
        ),
    )


def matrices(params: Any) -> Any:
    """Return a tree that is True where a parameter has more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
