"""From a checkpoint to arrays on devices: each slice from the file straight to its device."""

import concurrent.futures
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_nb.checkpoint.base import Checkpoint, Index
from llama_nb.checkpoint.gguf import GGUFCheckpoint
from llama_nb.checkpoint.meta import MetaCheckpoint
from llama_nb.checkpoint.names import Entry, entries
from llama_nb.checkpoint.safetensors import SafetensorsCheckpoint
from llama_nb.errors import InputError, MissingFileError
from llama_nb.packed import Packed, to_int8
from llama_nb.quantize import SHARED_AXES, check_kind

Shardings = Mapping[tuple[str | int, ...], jax.sharding.Sharding]

_TILE = 1 << 20  # numbers that one thread quantizes at a time


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the reader for a file or folder; only headers are read.

    Raises
    ------
    MissingFileError
        When there is nothing, or nothing known, at `path`.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    if path.is_dir() and (path / "config.json").is_file():
        return SafetensorsCheckpoint(path)
    if path.is_dir() and (path / "params.json").is_file():
        return MetaCheckpoint(path)
    if not path.exists():
        raise MissingFileError(f"there is no file or folder {path}.")
    raise MissingFileError(
        f"{path} holds no checkpoint: expected a .gguf file, a folder with config.json and "
        "model.safetensors, or one with params.json and consolidated.00.pth."
    )


def load_params(
    checkpoint: Checkpoint,
    dtype: Any = jnp.float32,
    *,
    quant: str | None = None,
    bits: bool = False,
    shardings: Shardings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the parameters as `model.with_params` takes them.

    One tensor after another: of each, a device's slice is read from the memory map, cast or
    quantized, and put there. Beyond what this host's devices keep, no more than one tensor is in
    memory, and slices of other hosts' devices are not read. With `quant` there is one
    exception: where inputs are split, a host reads the whole matrix, for its scales.

    Parameters
    ----------
    checkpoint
        Open; its tensors are checked against its config first.
    dtype
        What every parameter is cast to.
    quant
        "int8" makes every matrix a `packed.Packed` of int8. A checkpoint that holds int8 matrices
        gives those as they are.
    bits
        Keep bfloat16 matrices as `packed.Packed` bits and everything else as float32: the form in
        which CPUs multiply them fast.
    shardings
        By `Entry.path`, as `sharding.param_shardings` gives them; None puts all on one device.
    progress
        Called with numbers done and numbers in all after each tensor.

    Raises
    ------
    CorruptFileError
        Before anything is read, when tensors and config disagree.
    """
    check_kind(quant)
    checkpoint.check()
    todo = list(entries(checkpoint.config))
    total = sum(math.prod(entry.shape) for entry in todo)
    done, params = 0, {}
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for entry, following in zip(todo, [*todo[1:], None], strict=True):
            if following is not None and jax.process_count() == 1:
                checkpoint.prefetch(following)  # from the disk, while this one is turned
            sharding = None if shardings is None else shardings[entry.path]
            axes = SHARED_AXES.get(entry.path[-1])
            scales = checkpoint.scales(entry)
            if scales is not None:
                value = _stored_int8(checkpoint, entry, scales, sharding)
            elif axes is not None and quant is not None:
                value = _quantized(checkpoint, entry, axes, sharding, threads)
            elif bits:
                wide = np.dtype(jnp.bfloat16 if axes is not None else jnp.float32)
                value = _plain(checkpoint, entry, wide, sharding, bits=axes is not None)
            else:
                value = _plain(checkpoint, entry, np.dtype(dtype), sharding)
            # Wait, so that what the host read is freed before the next tensor is.
            _insert(params, entry, jax.block_until_ready(value))
            done += math.prod(entry.shape)
            if progress is not None:
                progress(done, total)
    return params


def _plain(
    checkpoint: Checkpoint,
    entry: Entry,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
    bits: bool = False,
) -> jax.Array | Packed:
    def part(index: Index) -> np.ndarray:
        values = np.asarray(checkpoint.read(entry, index))
        # A copy where JAX would else keep pointing into the file.
        values = values.astype(dtype, copy=values.flags.c_contiguous)
        return values.view(np.uint16) if bits else values

    array = _make(entry.shape, sharding, part)
    return Packed(array) if bits else array


def _stored_int8(
    checkpoint: Checkpoint,
    entry: Entry,
    scales: np.ndarray,
    sharding: jax.sharding.Sharding | None,
) -> Packed:
    values = _plain(checkpoint, entry, np.dtype(np.int8), sharding)
    return Packed(values, _put_scales(entry, scales, sharding))


def _quantized(
    checkpoint: Checkpoint,
    entry: Entry,
    axes: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
    threads: concurrent.futures.Executor,
) -> Packed:
    """Round a matrix tile by tile; `axes` are its inputs, which share a scale."""
    scales = np.empty([1 if a in axes else n for a, n in enumerate(entry.shape)], np.float32)
    known: set[tuple[tuple[int, int], ...]] = set()  # ranges of outputs whose scales are there

    def every_input(index: Index) -> Index:
        return tuple(slice(None) if a in axes else s for a, s in enumerate(index))

    def part(index: Index) -> np.ndarray:
        spans = tuple(slice(*s.indices(n)) for s, n in zip(index, entry.shape, strict=True))
        out = _as_stored(entry, [s.stop - s.start for s in spans])
        outputs = tuple((s.start, s.stop) for a, s in enumerate(spans) if a not in axes)

        def fill(tile: Index, cut: Index) -> None:
            scale = scales[every_input(tile)]
            if outputs in known:
                values, _ = to_int8(np.asarray(checkpoint.read(entry, tile)), axes, np, scale)
            else:
                # A scale belongs to a whole vector of inputs, of which this device may keep a part.
                whole = np.asarray(checkpoint.read(entry, every_input(tile)))
                values, scale[...] = to_int8(whole, axes, np)
                values = values[tuple(s if a in axes else slice(None) for a, s in enumerate(tile))]
            out[cut] = values

        _each_tile(entry, spans, fill, threads)
        known.add(outputs)
        return out

    values = _make(entry.shape, sharding, part)  # fills the scales too
    return Packed(values, _put_scales(entry, scales, sharding))


def _put_scales(
    entry: Entry, scales: np.ndarray, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """Put scales where their outputs are, shaped as `Packed.scale` broadcasts."""
    cut = len(entry.shape) - entry.outputs if entry.outputs else 0
    shape = entry.shape[cut:] if entry.outputs else (entry.shape[0], 1)
    if isinstance(sharding, jax.sharding.NamedSharding):
        parts = [*sharding.spec, *[None] * (len(entry.shape) - len(sharding.spec))]
        parts = parts[cut:] if entry.outputs else parts[:1]
        spec = jax.sharding.PartitionSpec(*parts)
        sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
    scales = scales.reshape(shape)
    return _make(shape, sharding, lambda index: scales[index])


def _make(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
    part: Callable[[Index], np.ndarray],
) -> jax.Array:
    if sharding is None:
        # Not bound to a device: arrays that are would compile a program of their own wherever
        # they meet one that isn't.
        return jax.device_put(part((slice(None),) * len(shape)))
    known: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def once(index: Index) -> np.ndarray:
        # JAX asks for every device's part, and several devices may keep the same one.
        key = tuple(s.indices(size) for s, size in zip(index, shape, strict=True))
        if key not in known:
            known[key] = part(index)
        return known[key]

    return jax.make_array_from_callback(shape, sharding, once)


def _as_stored(entry: Entry, shape: list[int]) -> np.ndarray:
    """Return an int8 array of our shape whose memory has the file's order, outputs first.

    JAX turns it on its way to the device, faster than NumPy would.
    """
    cut = len(shape) - entry.outputs
    if not entry.outputs:
        return np.empty(shape, np.int8)
    turned = np.empty((*shape[cut:], *shape[:cut]), np.int8)
    return turned.transpose((*range(entry.outputs, len(shape)), *range(entry.outputs)))


def _each_tile(
    entry: Entry,
    spans: tuple[slice, ...],
    fill: Callable[[Index, Index], None],
    threads: concurrent.futures.Executor,
) -> None:
    """Call `fill(tile of the tensor, tile of the part)` for tiles along the first output axis."""
    axis = len(entry.shape) - entry.outputs if entry.outputs else 0
    first, last = spans[axis].start, spans[axis].stop
    # Whole tensors count, since a scale needs whole vectors.
    step = max(1, _TILE // (math.prod(entry.shape) // entry.shape[axis]))

    def one(start: int) -> None:
        stop = min(start + step, last)
        tile, cut = list(spans), [slice(None)] * len(spans)
        tile[axis], cut[axis] = slice(start, stop), slice(start - first, stop - first)
        fill(tuple(tile), tuple(cut))

    for _ in threads.map(one, range(first, last, step)):
        pass


def _insert(params: dict[str, Any], entry: Entry, value: Any) -> None:
    node = params
    for key in entry.path[:-1]:
        node = node.setdefault(key, {})
    if entry.path[-1] in node:
        raise InputError(f"{entry.name} was loaded twice.")
    node[entry.path[-1]] = value
