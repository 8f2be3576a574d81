"""From any checkpoint, or from memory, to a Hugging Face folder, a piece of a tensor at a time."""

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_nb import disk
from llama_nb.checkpoint import compressed
from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.load import open_checkpoint
from llama_nb.checkpoint.memory import Memory
from llama_nb.checkpoint.names import Entry, entries
from llama_nb.checkpoint.shards import INDEX, Shard, Stored, index, plan, whole_or_nothing, write
from llama_nb.checkpoint.tokens import Extras, described, template_of, tokenizer_files
from llama_nb.config import LlamaConfig
from llama_nb.config_files import to_hf
from llama_nb.errors import CorruptFileError, InputError, LlamaError
from llama_nb.progress import bar
from llama_nb.quantize import check_kind, quantize_rows
from llama_nb.tokenizer import Tokenizer

DTYPES = {"bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)), "float32": ("F32", np.dtype("f4"))}
_JOB = ".convert.json"  # there while a conversion is unfinished
_BLOCK = 1 << 24  # numbers that are in memory at a time: 64 MB in float32
_SPARE = 1 << 24  # bytes for the small files
_SHARD = 2_000_000_000  # bytes of the tensors in one file


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "bfloat16",
    quant: str | None = None,
    max_shard_bytes: int = _SHARD,
    progress: bool = True,
) -> Path:
    """Write a checkpoint of any format as a Hugging Face folder, which `transformers` can load.

    An interrupted conversion has no `config.json`, so nothing takes it for a model; started again,
    it keeps the files that are whole.

    Parameters
    ----------
    source
        A folder or `.gguf` file, as `open_checkpoint` takes it.
    target
        A new or empty folder, or one where the same conversion was interrupted.
    dtype
        'bfloat16' or 'float32'.
    quant
        'int8' stores the projections in int8, with one scale per output; the rest in `dtype`.
    max_shard_bytes
        Of the tensors in one file.
    progress
        Whether to say on standard error how far it is.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    InputError
        When an option is unknown, or `target` is taken, not writable or too small.
    MissingFileError, CorruptFileError
        When `source` is absent or damaged.
    """
    source, target = Path(source), Path(target)
    _check_options(dtype, quant)
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is both source and target; name another folder to write to.")
    checkpoint = open_checkpoint(source)
    checkpoint.check()
    job = {
        "source": _fingerprint(source),
        "options": {"dtype": dtype, "quant": quant, "max_shard_bytes": max_shard_bytes},
    }
    extras = tokenizer_files(source, checkpoint)
    title = f"converting {source.name or source} to {quant or dtype}"
    _write(checkpoint, target, extras, job, title if progress else None)
    if progress and extras.note:
        print(extras.note, file=sys.stderr, flush=True)
    return target


def save(
    target: str | Path,
    config: LlamaConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "bfloat16",
    quant: str | None = None,
) -> Path:
    """Write weights that are in memory as a Hugging Face folder.

    `llama_nb.load`, `transformers` and `convert` read it. The folder is there when it is whole.

    Parameters
    ----------
    target
        A new or empty folder.
    config, params
        The model's shape, and its weights as `model.params_of` gives them.
    tokenizer
        Its tokenizer; without one the folder is of no use for text.
    dtype, quant
        As in `convert`.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    InputError
        When the weights are of another config, an option is unknown, or `target` is taken, not
        writable or too small.
    """
    target = Path(target)
    _check_options(dtype, quant)
    checkpoint = Memory(config, params)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already; name a new or empty folder to write to.")
    extras = Extras({}, {})
    if tokenizer is not None:
        extras = described(tokenizer, config.context, template_of(tokenizer))
    whole = target.with_name(target.name + ".partial")
    with _errors_of(target):
        shutil.rmtree(whole, ignore_errors=True)  # Of one that was cut short.
        job = {"options": {"dtype": dtype, "quant": quant, "max_shard_bytes": _SHARD}}
        _write(checkpoint, whole, extras, job, None)
        os.replace(whole, target)
    return target


def _check_options(dtype: str, quant: str | None) -> None:
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; known: {', '.join(DTYPES)}.")
    check_kind(quant)


def _write(
    checkpoint: Checkpoint,
    target: Path,
    extras: Extras,
    job: dict[str, Any],
    title: str | None,
) -> None:
    """Write what `job` says, except what an earlier try left whole."""
    dtype, quant = job["options"]["dtype"], job["options"]["quant"]
    todo = [(entry, _stored(entry, dtype, quant)) for entry in entries(checkpoint.config)]
    shards = plan((stored for _, stored in todo), job["options"]["max_shard_bytes"])
    where = {stored[0].name: entry for entry, stored in todo}
    with _errors_of(target):
        kept = _kept(target, job, shards)
        missing = [shard for shard in shards if shard not in kept]
        _check_room(target, sum(shard.size for shard in missing) + _SPARE)
        target.mkdir(parents=True, exist_ok=True)
        _put(target / _JOB, job)
        done, total = 0, sum(shard.size for shard in missing)
        with bar(title or "", total, quiet=title is None) as show:
            for shard in missing:
                wanted = [where[t.name] for t in shard.tensors if t.name in where]
                pieces = (p for e in wanted for p in _pieces(checkpoint, e, dtype, quant))
                for count in write(shard, target, pieces):
                    done += count
                    show(done, total)
        for name, content in extras.files.items():
            _put(target / name, content)
        config = to_hf(checkpoint.config) | extras.token_ids | {"torch_dtype": dtype}
        if quant:
            config["quantization_config"] = compressed.describe(checkpoint.config.tied)
        _put(target / INDEX, index(shards))
        _put(target / "config.json", config)  # last: it makes the folder a model
        (target / _JOB).unlink()


def _stored(entry: Entry, dtype: str, quant: str | None) -> tuple[Stored, ...]:
    """Return how a parameter is stored: one tensor, or int8 numbers and scales."""
    if not _is_quantized(entry, quant):
        return (Stored(entry.hf, DTYPES[dtype][0], entry.stored_shape),)
    scales = Stored(compressed.scale_name(entry.hf), "F32", (entry.stored_shape[0], 1))
    return Stored(entry.hf, "I8", entry.stored_shape), scales


def _is_quantized(entry: Entry, quant: str | None) -> bool:
    return quant is not None and (entry.outputs > 0 or entry.path == ("lm_head",))


def _pieces(
    checkpoint: Checkpoint, entry: Entry, dtype: str, quant: str | None
) -> Iterator[np.ndarray]:
    """Yield a parameter's rows, some at a time, as they are written."""
    scales = []
    for rows in _rows(checkpoint, entry):
        if not _is_quantized(entry, quant):
            yield rows.astype(DTYPES[dtype][1], copy=False)
            continue
        if not np.isfinite(rows).all():
            raise CorruptFileError(
                f"{checkpoint.path}: tensor {checkpoint.entry_name(entry)} holds NaN or infinite "
                "numbers, which have no int8 scale; the checkpoint is damaged."
            )
        values, scale = quantize_rows(rows)
        scales.append(scale)
        yield values
    if scales:
        yield np.concatenate(scales)


def _rows(checkpoint: Checkpoint, entry: Entry) -> Iterator[np.ndarray]:
    """Yield some rows at a time of a parameter in Hugging Face's layout, (outputs, inputs)."""
    scales = checkpoint.scales(entry)
    axis = len(entry.shape) - entry.outputs if entry.outputs else 0
    size, total = entry.shape[axis], math.prod(entry.shape)
    step = max(1, _BLOCK * size // total)
    width = entry.stored_shape[0] // size  # stored rows per position of that axis
    index = [slice(None)] * len(entry.shape)
    for start in range(0, size, step):
        stop = min(start + step, size)
        index[axis] = slice(start, stop)
        rows = checkpoint.read(entry, tuple(index))
        if entry.outputs:
            order = (*range(axis, rows.ndim), *range(axis))
            rows = rows.transpose(order).reshape((stop - start) * width, -1)
        if scales is not None:
            rows = rows * scales[start * width : stop * width, None]
        yield rows


def _fingerprint(source: Path) -> list[list[Any]]:
    """Return what tells a source from a changed one: names, sizes and dates of its files."""
    files = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _kept(target: Path, job: dict[str, Any], shards: list[Shard]) -> list[Shard]:
    """Return the files that an interrupted conversion left whole; refuse any other content."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a folder to write to.")
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if not names - {_JOB + ".partial"}:
        return []
    if _JOB not in names:
        raise InputError(
            f"{target} already holds {min(names)}; name a new or empty folder to write to."
        )
    try:
        same = json.loads((target / _JOB).read_text()) == job
    except ValueError:
        same = False
    if not same:
        raise InputError(
            f"{target} holds an unfinished conversion of another source or with other options; "
            "remove it or name another folder."
        )
    for path in target.glob("*.partial"):
        path.unlink()
    return [shard for shard in shards if shard.is_whole(target)]


def _check_room(target: Path, needed: int) -> None:
    free = disk.free_bytes(target)
    if free < needed:
        raise InputError(
            f"{target} has no room: {needed:,} bytes are needed and {free:,} are free; free some "
            "space or name a folder on another disk."
        )


@contextlib.contextmanager
def _errors_of(target: Path) -> Iterator[None]:
    """Say in one sentence that the target's disk is full or not writable."""
    try:
        yield
    except LlamaError:
        raise
    except OSError as error:
        if disk.is_full(error):
            raise InputError(
                f"{target}: the disk is full ({error.strerror}); free some space and run the same "
                "command again, which continues where this one stopped."
            ) from None
        if disk.is_closed(error):
            raise InputError(
                f"{target} cannot be written ({error.strerror}); name another folder."
            ) from None
        raise


def _put(path: Path, content: bytes | dict[str, Any]) -> None:
    if isinstance(content, dict):
        content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    with whole_or_nothing(path) as file:
        file.write(content)
