"""The whole decode step of a Llama by hand, for as many chips as a pod has.

The mesh has two axes: `model` divides the KV heads, `spare` is the number of chips that each KV
head gets. Every matrix is split over all chips, and so is the cache: over `model` by its heads,
over `spare` by its sequences or, where those don't divide, by its slots. Each layer, on each chip:

    q, k, v = norm(x) @ qkv                    some columns, then gathered over `spare`
    y = attention(q, cache and k, v)           of its KV heads, and its sequences or slots
    x += y @ o                                 some rows: partial sums, added over all chips
    x += swiglu(norm(x) @ gate_up) @ down      some columns, then some rows: added up again

The compiler fetches the weights and the cache of the next layers while it computes on these, so two
things are left to the program: few small operations, since each takes a microsecond however little
it does, and nothing in a layer that must wait before it can be fetched. Hence the fused matrices,
RoPE as a product, and a cache that is read as the last step left it and written at the very end.
"""

from llama_nb.pod.layout import (
    AXES,
    cache_shapes,
    cache_shardings,
    cache_split,
    check,
    fuse,
    make_mesh,
    param_shapes,
    shardings,
)
from llama_nb.pod.step import decode_step, kernel

__all__ = [
    "AXES",
    "cache_shapes",
    "cache_shardings",
    "cache_split",
    "check",
    "decode_step",
    "fuse",
    "kernel",
    "make_mesh",
    "param_shapes",
    "shardings",
]
