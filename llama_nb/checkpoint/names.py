"""One parameter, three names: ours, and where each published format keeps it.

Every format stores a projection as (outputs, inputs), the transpose of the natural shapes used
here, with heads and head width flattened into one axis.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from llama_nb.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one parameter is found and how it is turned.

    Attributes
    ----------
    path
        Ours, keys of the nested parameter dict: `("layers", 0, "attn", "q_proj")`.
    shape
        Ours, for instance (D, N, H).
    hf, meta, gguf
        Names in the three formats.
    outputs
        Number of trailing axes of `shape` that the stored matrix has as rows; 0 when the tensor
        is stored as it is.
    rotary
        Whether rows come in rotary pairs, which Meta and GGUF interleave.
    """

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    hf: str
    meta: str
    gguf: str
    outputs: int = 0
    rotary: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in the file: (outputs, inputs) flattened, or ours."""
        if not self.outputs:
            return self.shape
        cut = len(self.shape) - self.outputs
        rows, columns = np.prod(self.shape[cut:], dtype=int), np.prod(self.shape[:cut], dtype=int)
        return int(rows), int(columns)

    @property
    def name(self) -> str:
        """The path as text, for messages."""
        return ".".join(map(str, self.path))


def entries(config: LlamaConfig) -> Iterator[Entry]:
    """Yield every parameter of the model, in the order of the forward pass."""
    D, F, V = config.embed_dim, config.ffn_dim, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    yield Entry(
        ("embed",),
        (V, D),
        "model.embed_tokens.weight",
        "tok_embeddings.weight",
        "token_embd.weight",
    )
    # ours, shape, Hugging Face, Meta, GGUF, output axes, rotary
    rows = [
        (("attn_norm",), (D,), "input_layernorm", "attention_norm", "attn_norm", 0, False),
        (("attn", "q_proj"), (D, N, H), "self_attn.q_proj", "attention.wq", "attn_q", 2, True),
        (("attn", "k_proj"), (D, K, H), "self_attn.k_proj", "attention.wk", "attn_k", 2, True),
        (("attn", "v_proj"), (D, K, H), "self_attn.v_proj", "attention.wv", "attn_v", 2, False),
        (
            ("attn", "o_proj"),
            (N, H, D),
            "self_attn.o_proj",
            "attention.wo",
            "attn_output",
            1,
            False,
        ),
        (("mlp_norm",), (D,), "post_attention_layernorm", "ffn_norm", "ffn_norm", 0, False),
        (("mlp", "gate_proj"), (D, F), "mlp.gate_proj", "feed_forward.w1", "ffn_gate", 1, False),
        (("mlp", "up_proj"), (D, F), "mlp.up_proj", "feed_forward.w3", "ffn_up", 1, False),
        (("mlp", "down_proj"), (F, D), "mlp.down_proj", "feed_forward.w2", "ffn_down", 1, False),
    ]
    for layer in range(config.num_layers):
        for path, shape, hf, meta, gguf, outputs, rotary in rows:
            yield Entry(
                ("layers", layer, *path),
                shape,
                f"model.layers.{layer}.{hf}.weight",
                f"layers.{layer}.{meta}.weight",
                f"blk.{layer}.{gguf}.weight",
                outputs,
                rotary,
            )
    yield Entry(("norm",), (D,), "model.norm.weight", "norm.weight", "output_norm.weight")
    if not config.tied:
        yield Entry(("lm_head",), (V, D), "lm_head.weight", "output.weight", "output.weight")


def split_halves(rows: np.ndarray) -> np.ndarray:
    """Reorder rotary rows from Meta's interleaved pairs to split halves.

    Meta rotates features `2 i` and `2 i + 1` together, Hugging Face (and this package) `i` and
    `i + H / 2`. Permuting the rows of q and k moves between the two, and since q and k are
    permuted alike, every score q . k stays what it was.

    Parameters
    ----------
    rows
        Shape (heads, H, ...).
    """
    return np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1)


def interleave(rows: np.ndarray) -> np.ndarray:
    """Reorder rotary rows from split halves to interleaved pairs (`split_halves` undone)."""
    half = rows.shape[1] // 2
    return np.stack([rows[:, :half], rows[:, half:]], axis=2).reshape(rows.shape)
