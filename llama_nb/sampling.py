"""From logits to a token: temperature, then top-k, top-p and min-p, then a draw."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from llama_nb.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes
    ----------
    temperature
        Divides the logits; 0 is greedy, the argmax.
    top_k
        Keep the k likeliest tokens; 0 keeps all.
    top_p
        Keep the fewest likeliest tokens whose probabilities reach p; in (0, 1], 1 keeps all.
    min_p
        Keep tokens at least `min_p` times as likely as the likeliest; in [0, 1), 0 keeps all.
    seed
        The same seed gives the same text on the same machine and versions.

    Raises
    ------
    InputError
        When a number is out of range.

    References
    ----------
    Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2025 (min-p).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self):
        # `not (a <= x)` rather than `x < a`, so that NaN is refused too.
        if not (0.0 <= self.temperature < math.inf):
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
        if not (isinstance(self.top_k, int) and self.top_k >= 0):
            raise InputError(f"top_k is {self.top_k}; it must be a whole number, 0 (off) or more.")
        if not (0.0 < self.top_p <= 1.0):
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1], 1 being off.")
        if not (0.0 <= self.min_p < 1.0):
            raise InputError(f"min_p is {self.min_p}; it must lie in [0, 1), 0 being off.")
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise InputError(f"seed is {self.seed}; it must be a whole number from 0 to 2**63 - 1.")

    @property
    def greedy(self) -> bool:
        """Whether chance plays no part."""
        return self.temperature == 0.0

    def numbers(self) -> dict[str, jax.Array]:
        """Return the settings as arrays, so that changing one recompiles nothing."""
        return {
            "temperature": jnp.float32(self.temperature or 1.0),
            "top_k": jnp.int32(min(self.top_k, 2**31 - 1)),
            "top_p": jnp.float32(self.top_p),
            "min_p": jnp.float32(self.min_p),
        }


def filter_logits(
    logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array
) -> jax.Array:
    """Divide by the temperature and set what the filters drop to minus infinity.

    Each filter sees what the one before it kept; the likeliest token always stays. Ties with the
    last token kept stay as well.

    Parameters
    ----------
    logits
        Shape (B, V), float32.
    temperature, top_k, top_p, min_p
        Scalars, as in `Sampling`; `temperature` above 0.

    Returns
    -------
    jax.Array
        Shape (B, V), float32; its softmax is the distribution that is sampled.
    """
    # Relative to the largest, a tiny temperature gives -inf for the others instead of inf - inf.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    # One sort serves all three filters: each keeps a prefix of the sorted tokens.
    ordered = -jnp.sort(-scaled, axis=-1)  # (B, V), likeliest first
    rank = jnp.arange(ordered.shape[-1])
    kept = (top_k == 0) | (rank < top_k)
    likely = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(likely, axis=-1) - likely  # probability of all likelier tokens
    kept = kept & ((top_p >= 1) | (before < top_p)) & (likely >= min_p * likely[..., :1])
    last = jnp.min(jnp.where(kept | (rank == 0), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= last, scaled, -jnp.inf)


def sample(
    logits: jax.Array, key: jax.Array, numbers: dict[str, jax.Array], *, greedy: bool
) -> jax.Array:
    """Choose one token per row.

    Parameters
    ----------
    logits
        Shape (B, V), float32.
    key
        A JAX random key; each row draws from its own fold of it.
    numbers
        From `Sampling.numbers`.
    greedy
        Take the argmax; `key` and `numbers` go unused.

    Returns
    -------
    jax.Array
        Token ids, shape (B,), int32.
    """
    if greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
    filtered = filter_logits(logits, **numbers)
    return jax.vmap(jax.random.categorical)(rows, filtered).astype(jnp.int32)
