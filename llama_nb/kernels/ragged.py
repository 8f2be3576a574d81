"""What kernels for sequences of different lengths share."""

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb.errors import InputError

# The score of an unused slot, and the lse of no slots: finite, so that less itself it is 0.
NOTHING = -1e30


def check_ends(starts: jax.Array, lengths: jax.Array, B: int, most: int, what: str) -> None:
    """Refuse first and last positions that aren't B integers from 0 to `most`.

    Traced values can't be looked at; of those only shape and dtype are checked.

    Parameters
    ----------
    what
        What has so many positions, such as "a cache of 128 slots".

    Raises
    ------
    InputError
        Naming the array.
    """
    for name, numbers in (("starts", starts), ("lengths", lengths)):
        if numbers.shape != (B,) or not jnp.issubdtype(numbers.dtype, jnp.integer):
            raise InputError(
                f"{name} is {numbers.dtype}{list(numbers.shape)}; wanted integers of shape ({B},)."
            )
        if isinstance(numbers, jax.core.Tracer):
            continue
        found = np.asarray(numbers)
        if found.min() < 0 or found.max() > most:
            raise InputError(
                f"{name} go from {found.min()} to {found.max()}; {what} can have 0 to {most}."
            )
