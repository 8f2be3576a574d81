"""Where the time goes: FLOPs and bytes of every operation, and what a chip allows.

An operation of `flops` that must move `bytes` takes at least the longer of `flops / peak` and
`bytes / bandwidth`. Their ratio, the arithmetic intensity, says which (Williams et al. 2009).

The names of `hardware`, where peaks and bandwidths are from, are here, too.
"""

import dataclasses

from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.hardware import CHIPS, Chip, best_seconds, here, measure  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of the model: how many tokens for whom, and how wide the numbers are.

    Attributes
    ----------
    batch, new
        Sequences, B, and tokens that each of them brings, T.
    context
        Positions that the last of these tokens looks at, itself included: S.
    weights, cache, activations
        Bytes per number: 2 for bfloat16, 1 for int8.
    block
        Queries that share a range of keys (`layers.causal_attention`); 1 counts just the scores
        below the diagonal.

    Raises
    ------
    InputError
        When there is nothing to do, or the new tokens exceed the context.
    """

    batch: int = 1
    new: int = 1
    context: int = 1
    weights: float = 2
    cache: float = 2
    activations: float = 2
    block: int = 1

    def __post_init__(self):
        if min(self.batch, self.new, self.block) < 1 or self.context < self.new:
            raise InputError(
                f"a step of {self.batch} sequences, {self.new} new tokens and a context of "
                f"{self.context} is impossible; the new tokens are part of the context."
            )

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.batch * self.new

    @property
    def scores(self) -> int:
        """Pairs of a query and a key that one head computes, all sequences together."""
        past = self.context - self.new
        ends = [*range(self.block, self.new, self.block), self.new]
        pairs = sum(
            (end - start) * (past + end) for start, end in zip([0, *ends], ends, strict=False)
        )
        return self.batch * pairs


def decode(batch: int = 1, context: int = 1, **widths: float) -> Step:
    """Return the step that adds one token to each of `batch` sequences of `context` tokens."""
    return Step(batch, 1, context, **widths)


def prefill(batch: int = 1, prompt: int = 1, **widths: float) -> Step:
    """Return the step that reads `batch` prompts of `prompt` tokens."""
    return Step(batch, prompt, prompt, **widths)


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of the model, all layers together.

    Attributes
    ----------
    name
        The parameter's, where it has one.
    flops
        Additions and multiplications; exponentials and roots are not counted, as in XLA.
    weights, cache, activations
        Bytes that it must read or write, by kind.
    """

    name: str
    flops: float
    weights: float = 0
    cache: float = 0
    activations: float = 0

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.weights + self.cache + self.activations

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes

    def seconds(self, chip: Chip) -> float:
        """Return the least time that a chip needs for it alone."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


def ops(config: LlamaConfig, step: Step) -> list[Op]:
    """Return every operation of a step, in the order of the model.

    A product of (tokens, inputs) with weights (inputs, outputs) costs `2 tokens inputs outputs`
    FLOPs. It reads its weights and its input once and writes its output once. Attention costs 4 H
    FLOPs per score for the two products and 6 for the softmax, reads each key and value once and
    never writes the scores down. Logits are computed for the last token of each sequence.
    """
    D, F, V, L = config.embed_dim, config.ffn_dim, config.vocab_size, config.num_layers
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    tokens, last = step.tokens, step.batch

    def product(name: str, inputs: int, outputs: int, rows: int = L * tokens, times: int = L):
        return Op(
            name,
            flops=2 * rows * inputs * outputs,
            weights=times * inputs * outputs * step.weights,
            activations=rows * (inputs + outputs) * step.activations,
        )

    def each(name: str, flops: int, moved: int, weights: int = 0, rows: int = L * tokens):
        return Op(name, rows * flops, weights * step.weights, 0, rows * moved * step.activations)

    attention = Op(
        "attention",
        flops=L * N * step.scores * (4 * H + 6),
        cache=L * step.batch * step.context * 2 * K * H * step.cache,
        activations=L * tokens * 2 * N * H * step.activations,
    )
    return [
        Op("embed", 0, tokens * D * step.weights, 0, tokens * D * step.activations),
        each("attn_norm", 4 * D, 2 * D, weights=L * D),
        product("q_proj", D, N * H),
        product("k_proj", D, K * H),
        product("v_proj", D, K * H),
        each("rope", 3 * (N + K) * H, 2 * (N + K) * H),
        Op("cache write", 0, 0, L * tokens * 2 * K * H * step.cache),
        attention,
        product("o_proj", N * H, D),
        each("mlp_norm", 4 * D, 2 * D, weights=L * D),
        product("gate_proj", D, F),
        product("up_proj", D, F),
        each("swiglu", 2 * F, 3 * F),
        product("down_proj", F, D),
        each("add", 2 * D, 6 * D),
        each("norm", 4 * D, 2 * D, weights=D, rows=tokens),
        product("lm_head", D, V, rows=last, times=1),
    ]


def total(operations: list[Op], name: str = "total") -> Op:
    """Return the sum of operations, as one."""
    fields = ("flops", "weights", "cache", "activations")
    return Op(name, *(sum(getattr(op, field) for op in operations) for field in fields))


@dataclasses.dataclass(frozen=True)
class Floor:
    """What no program can beat: the least time of a step, by cause.

    Attributes
    ----------
    compute, memory
        Seconds of arithmetic at the peak, and of reading weights and cache at full bandwidth.
    held
        Bytes that each chip must hold: its share of all weights and of the cache.
    fits
        Whether they fit the chip, with nothing left for anything else.
    """

    compute: float
    memory: float
    held: float
    fits: bool

    @property
    def seconds(self) -> float:
        """The least time of the step, arithmetic and memory overlapping perfectly."""
        return max(self.compute, self.memory)


def floor(config: LlamaConfig, step: Step, chip: Chip, chips: int = 1) -> Floor:
    """Return the least time of a step on `chips` chips that split weights, cache and work evenly.

    Activations stay on the chip and talk between chips is free, so a program takes longer. Of the
    embedding a step reads only the rows of its tokens. Products run at the int8 rate where both
    weights and activations are int8 and the chip has one.

    Examples
    --------
    >>> llama = presets.get("llama3.1-70b")
    >>> step = decode(batch=8, context=2048, weights=1, cache=1)
    >>> f"{floor(llama, step, CHIPS['TPU v5e'], chips=16).seconds * 1e3:.2f} ms"
    '5.51 ms'
    """
    if chips < 1:
        raise InputError(f"{chips} chips were asked for; there must be at least 1.")
    whole = total(ops(config, step))
    both8 = step.weights <= 1 and step.activations <= 1
    peak = chip.int8 if both8 and chip.int8 else chip.flops
    cache = step.batch * step.context * config.cache_bytes_per_token(1) * step.cache
    held = (config.param_count() * step.weights + cache) / chips
    return Floor(
        compute=whole.flops / chips / peak,
        memory=(whole.weights + whole.cache) / chips / chip.bandwidth,
        held=held,
        fits=held <= chip.capacity,
    )


def train_flops(config: LlamaConfig, batch: int, context: int) -> float:
    """Return the FLOPs of a training step of `batch` rows of `context` tokens.

    The backward pass costs twice the forward one: a product with respect to each of its factors.
    """
    forward = total(ops(config, prefill(batch, context))).flops
    # Training wants the logits of every position, not only of the last.
    return 3 * (forward + 2 * batch * (context - 1) * config.embed_dim * config.vocab_size)


def train_floor(config: LlamaConfig, batch: int, context: int, chip: Chip, chips: int = 1) -> Floor:
    """Return the least time of a training step of AdamW on `chips` chips that split all evenly.

    The update reads and writes weights and both moments, float32 each.
    """
    held = 12 * config.param_count() / chips
    return Floor(
        compute=train_flops(config, batch, context) / chips / chip.flops,
        memory=2 * held / chip.bandwidth,
        held=held,
        fits=held <= chip.capacity,
    )
