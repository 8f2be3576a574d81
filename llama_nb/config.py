"""What distinguishes one Llama from another: eleven numbers and a rotary scaling."""

import dataclasses
import math

from llama_nb.errors import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary wavelengths (`layers.rope_frequencies`).

    Wavelengths below `original_context / high_freq_factor` tokens stay, those above
    `original_context / low_freq_factor` are multiplied by `factor`, with a smooth band between.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama. Frozen and hashable, so it can be a static argument of `jax.jit`.

    The letters are the book's notation: V `vocab_size`, D `embed_dim`, F `ffn_dim`, L `num_layers`,
    N `num_heads`, K `num_kv_heads`, H `head_dim`; `context` is in tokens.
    """

    vocab_size: int
    embed_dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False

    def __post_init__(self):
        for field in (
            "vocab_size",
            "embed_dim",
            "ffn_dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "context",
        ):
            size = getattr(self, field)
            if not isinstance(size, int) or size < 1:
                raise InputError(f"{field} is {size!r}; it must be a whole number of at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} KV heads evenly; "
                "num_heads must be a multiple of num_kv_heads."
            )
        if self.head_dim % 2:
            raise InputError(
                f"head_dim is {self.head_dim}; RoPE rotates pairs, so it must be even."
            )

    @property
    def group_size(self) -> int:
        """Query heads per KV head, G = N / K."""
        return self.num_heads // self.num_kv_heads

    def param_count(self) -> int:
        """Return the exact number of parameters; a tied head counts once."""
        D, F, H = self.embed_dim, self.ffn_dim, self.head_dim
        attention = D * H * (2 * self.num_heads + 2 * self.num_kv_heads)
        block = attention + 3 * D * F + 2 * D
        embeddings = self.vocab_size * D * (1 if self.tied else 2)
        return embeddings + self.num_layers * block + D

    def flops_per_token(self, context: int = 0) -> int:
        """Return the FLOPs of one forward token that attends to `context` positions.

        Two per multiply-add in every matrix product: `2 * (parameters in matrices)` for the weights
        (the embedding is a lookup, so it costs nothing, but the head does) and
        `4 * L * N * H * context` for the scores and the weighted sum.
        """
        D, F, H = self.embed_dim, self.ffn_dim, self.head_dim
        attention = D * H * (2 * self.num_heads + 2 * self.num_kv_heads)
        weights = self.num_layers * (attention + 3 * D * F) + self.vocab_size * D
        return 2 * weights + 4 * self.num_layers * self.num_heads * H * context

    def cache_bytes_per_token(self, itemsize: int = 2) -> int:
        """Return the bytes that one position of one sequence takes in the KV cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize


def llama_ffn_dim(embed_dim: int, multiple_of: int, multiplier: float | None = None) -> int:
    """Return F as Meta's `params.json` implies it.

    Two thirds of `4 D`, so that three matrices cost what two of width `4 D` would, times an
    optional multiplier, rounded up to `multiple_of` (Llama 1, section 2.2; Meta's `FeedForward`).
    """
    hidden = int(2 * (4 * embed_dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * math.ceil(hidden / multiple_of)
