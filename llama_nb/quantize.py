"""int8 weights: half the bytes of bfloat16, a quarter of float32, and the same model code."""

import dataclasses
from typing import Any

import jax
import numpy as np

from llama_nb.config import LlamaConfig
from llama_nb.errors import InputError
from llama_nb.model import Llama, params_of
from llama_nb.packed import Packed, to_int8

KINDS = ("int8",)

# The axes of each matrix that share one scale: its inputs. Gains of norms are not quantized.
SHARED_AXES = {
    "embed": (1,),  # (V, D)
    "lm_head": (1,),
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), (0,)),  # (D, N, H)
    "o_proj": (0, 1),  # (N, H, D)
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), (0,)),  # (D, F) and (F, D)
}


def check_kind(quant: str | None) -> None:
    """Raise `InputError` unless `quant` is None or a known kind."""
    if quant is not None and quant not in KINDS:
        raise InputError(f"quant is {quant!r}; known: {', '.join(KINDS)}, or None for none.")


def quantize_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a stored matrix: symmetric int8, one scale per output.

    Parameters
    ----------
    matrix
        Shape (outputs, inputs), any float dtype.

    Returns
    -------
    tuple of numpy.ndarray
        int8 values, shape (outputs, inputs), and float32 scales, shape (outputs,).
    """
    values, scale = to_int8(matrix, 1, np)
    return values, scale[:, 0]


def quantize(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters (`model.params_of`'s) with every matrix in int8; norms stay.

    For a model that is in memory already; `load(..., quant="int8")` quantizes while it reads and
    never holds the wide one.
    """

    def visit(node: Any, name: str | int) -> Any:
        if isinstance(node, dict):
            return {key: visit(child, key) for key, child in node.items()}
        axes = SHARED_AXES.get(name)
        if axes is None or isinstance(node, Packed):
            return node
        values, scale = to_int8(node, axes)
        # What leads and has size 1 is not needed to broadcast.
        return Packed(values, scale.squeeze(axes) if axes[0] == 0 else scale)

    return visit(params, "")


def int8_bytes(config: LlamaConfig) -> int:
    """Return the bytes of a model whose matrices are int8; norms and scales are float32."""
    shallow = dataclasses.replace(config, num_layers=1)  # layers are alike
    shapes = jax.eval_shape(quantize, params_of(Llama(shallow)))

    def held(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return held(shapes) + (config.num_layers - 1) * held(shapes["layers"])
