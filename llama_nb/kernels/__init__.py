"""Kernels that this book writes with Pallas, and the choice between them and XLA.

    choice       what "auto", "xla" and "pallas" mean on a device
    decode       attention of one query per sequence to its cache: on TPU, on GPU, or by XLA
    flash        attention of whole prompts to themselves
    sharded      both on a mesh
    matmul       a few rows times a large int8 matrix, on TPU
    ragged       what they share

Arrays in, arrays out: nothing here knows the model. On a mesh they run inside `jax.shard_map`.
"""

from llama_nb.kernels.choice import Choice, choose
from llama_nb.kernels.decode import decode_attention
from llama_nb.kernels.flash import flash_attention

__all__ = ["Choice", "choose", "decode_attention", "flash_attention"]
