"""Checks for the book's exercises: your function against the package's, on random inputs.

Each prints one sentence, and returns whether the function is right, so that
`assert check.greedy(mine)` fails where it is not. One module per chapter.
"""

from llama_nb.check.attention import grouped_attention, merge_softmax, window_mask
from llama_nb.check.caching import bucket, cache_view, left_pad
from llama_nb.check.compiling import deeper, finish, talk
from llama_nb.check.data import bits_per_byte, first_fit, kept_out
from llama_nb.check.data_parallel import accumulate, exposed_seconds, pad_rows, token_mean
from llama_nb.check.decode_kernel import blocks_read, online_update, window_block
from llama_nb.check.eight import host_peak, longest_talk, whole_step
from llama_nb.check.flash import flash_bytes, tile_count, tile_kind
from llama_nb.check.fsdp import best_mesh, microbatches, zero_bytes
from llama_nb.check.hosts import crossing_bytes, who_waits
from llama_nb.check.int8 import (
    int8_scores,
    product_error_bound,
    quantize_outputs,
    write_int8,
)
from llama_nb.check.meshes import bytes_per_device, ring_all_gather, scattered_product
from llama_nb.check.model import greedy, param_count, residual_block
from llama_nb.check.pallas import column_sums, largest_block, matmul_bytes
from llama_nb.check.pods import best_offer, side_by_side, smallest_slice
from llama_nb.check.renting import host_bytes, open_ports
from llama_nb.check.rmsnorm import centre_outputs, fold_gain, rms_norm_of_parts
from llama_nb.check.rooflines import decode_floor, largest_batch, product_intensity
from llama_nb.check.rope import slower_theta, to_neighbours, unfinished_pairs
from llama_nb.check.samplers import nucleus, repetition_penalty, tokens_read
from llama_nb.check.start import cache_bytes, top_tokens
from llama_nb.check.swiglu import ffn_dim, score_share, swiglu_gradient
from llama_nb.check.tensor_parallel import split_argmax, split_loss, talk_bytes
from llama_nb.check.tokens import bytes_per_token, llama3_chat, stream_text
from llama_nb.check.training import clip_together, warmup_linear, weighted_loss
from llama_nb.check.tuning import answer_mask, best_adapter, lora_count, merge_adapter
from llama_nb.check.weights import find_tensor, piece_slices, to_halves

__all__ = [
    "accumulate",
    "answer_mask",
    "best_adapter",
    "best_mesh",
    "best_offer",
    "bits_per_byte",
    "blocks_read",
    "bucket",
    "bytes_per_device",
    "bytes_per_token",
    "cache_bytes",
    "cache_view",
    "centre_outputs",
    "clip_together",
    "column_sums",
    "crossing_bytes",
    "decode_floor",
    "deeper",
    "exposed_seconds",
    "ffn_dim",
    "find_tensor",
    "finish",
    "first_fit",
    "flash_bytes",
    "fold_gain",
    "greedy",
    "grouped_attention",
    "host_bytes",
    "host_peak",
    "int8_scores",
    "kept_out",
    "largest_batch",
    "largest_block",
    "left_pad",
    "llama3_chat",
    "longest_talk",
    "lora_count",
    "matmul_bytes",
    "merge_adapter",
    "merge_softmax",
    "microbatches",
    "nucleus",
    "online_update",
    "open_ports",
    "pad_rows",
    "param_count",
    "piece_slices",
    "product_error_bound",
    "product_intensity",
    "quantize_outputs",
    "repetition_penalty",
    "residual_block",
    "ring_all_gather",
    "rms_norm_of_parts",
    "scattered_product",
    "score_share",
    "side_by_side",
    "slower_theta",
    "smallest_slice",
    "split_argmax",
    "split_loss",
    "stream_text",
    "swiglu_gradient",
    "talk",
    "talk_bytes",
    "tile_count",
    "tile_kind",
    "to_halves",
    "to_neighbours",
    "token_mean",
    "tokens_read",
    "top_tokens",
    "unfinished_pairs",
    "warmup_linear",
    "weighted_loss",
    "who_waits",
    "whole_step",
    "window_block",
    "window_mask",
    "write_int8",
    "zero_bytes",
]
