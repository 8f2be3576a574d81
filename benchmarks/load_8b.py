"""Load 8 billion parameters on a machine that has room for them once.

Writes a random checkpoint of the exact Llama 3.1-8B shapes (bfloat16 safetensors, 16.06 GB), then
loads it, each time in a process of its own and with the files out of the page cache: on one
device, onto a mesh of eight virtual devices, and as int8. The floors: the disk's own rate (one
sequential read of the same files, measured first), and the bytes that are kept. Then it decodes a
few tokens from bfloat16 and from int8 weights, beside transformers on the same files.

    python benchmarks/load_8b.py [--folder DIR] [--tokens 8] [--save]

Needs 17 GB of disk and 20 GB of memory; takes about ten minutes.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import machine  # after the platform is chosen
import numpy as np

from llama_nb import presets, progress
from llama_nb.config import LlamaConfig

CASES = {
    "one device": {},
    "mesh 2x4": {"mesh": (2, 4)},
    "int8": {"quant": "int8"},
}


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here for another run")
    parser.add_argument("--tokens", type=int, default=8, help="to decode after the prompt's")
    parser.add_argument("--save", action="store_true", help="write results/load_8b.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case = _peer if options.case == "transformers" else _ours
        print(json.dumps(case(options.case, options.folder, options.tokens)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="llama-8b-"))
    try:
        figures = _measure(folder, options.tokens)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    if options.save:
        print("kept in", machine.save("load_8b", figures))


def _measure(folder: Path, tokens: int) -> dict[str, object]:
    write_checkpoint(folder, presets.get("llama3.1-8b"))
    disk = _read_rate(folder)
    print(f"the disk reads {disk:.2f} GB/s in one go\n")
    print(f"{'':14}{'kept GB':>9}{'s':>8}{'GB/s':>7}{'of disk':>9}{'peak anon GB':>14}", end="")
    print(f"{'allowed':>9}{'tokens/s':>10}")
    figures: dict[str, object] = {"disk_gb_per_s": disk, "new_tokens": tokens}
    for case in (*CASES, "transformers"):
        _forget(folder)
        command = [sys.executable, __file__, "--case", case, "--folder", folder]
        run = subprocess.run(
            [*map(str, command), "--tokens", str(tokens)], capture_output=True, text=True
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
            print(f"{case:14} failed: {reason}")
            figures[case] = {"failed": reason}
            continue
        row = figures[case] = json.loads(run.stdout.strip().splitlines()[-1])
        line = f"{case:14}{row['kept_gb']:9.2f}{row['load_s']:8.1f}"
        if case != "transformers":  # It maps the files and reads them when it first needs them.
            rate = row["read_gb"] / row["load_s"]
            row |= {"read_gb_per_s": rate, "of_disk": rate / disk}
            row["allowed_peak_gb"] = 1.08 * row["kept_gb"] + 1
            line += f"{rate:7.2f}{rate / disk:9.2f}{row['peak_anonymous_gb']:14.2f}"
            line += f"{row['allowed_peak_gb']:9.2f}"
        else:
            line += f"{'':16}{row['peak_anonymous_gb']:14.2f}{'':9}"
        print(line + (f"{row['tokens_per_s']:10.2f}" if "tokens_per_s" in row else ""))
    return figures


def write_checkpoint(folder: Path, config: LlamaConfig) -> None:
    """Write a random checkpoint, unless it is there."""
    from llama_nb.checkpoint.names import entries
    from llama_nb.checkpoint.shards import INDEX, Stored, index, plan, write
    from llama_nb.config_files import to_hf

    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [Stored(entry.hf, "BF16", entry.stored_shape) for entry in entries(config)]
    shards = plan([(tensor,) for tensor in tensors], 5 * 10**9)
    # A block of noise of a trained model's size, repeated: drawing 8 billion numbers takes minutes.
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)
    bits = (noise.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, rounded down
    one = np.full(1, 0x3F80, np.uint16)  # 1.0

    def pieces(tensor):
        left = math.prod(tensor.shape)
        block = np.resize(one, left) if len(tensor.shape) == 1 else bits
        while left:
            yield block[:left]
            left -= min(left, block.size)

    total, done = sum(tensor.nbytes for tensor in tensors), 0
    with progress.bar(f"writing {total / 1e9:.1f} GB of random weights", total) as show:
        for shard in shards:
            blocks = (block for tensor in shard.tensors for block in pieces(tensor))
            for size in write(shard, folder, blocks):
                done += size
                show(done, total)
    (folder / INDEX).write_text(json.dumps(index(shards)))
    (folder / "config.json").write_text(json.dumps(to_hf(config)))


def _forget(folder: Path) -> None:
    """Have the system drop the files from its cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_rate(folder: Path) -> float:
    """Return GB/s of reading one file from start to end."""
    _forget(folder)
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    buffer, start = bytearray(1 << 24), time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / (time.perf_counter() - start) / 1e9


class _Peak:
    """The most anonymous memory of this process while a block runs, in GB, and that before it."""

    def __enter__(self):
        self.before = self.gb = self._anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.002):
            self.gb = max(self.gb, self._anonymous())

    @staticmethod
    def _anonymous():
        with open("/proc/self/status") as lines:
            return next(int(s.split()[1]) for s in lines if s.startswith("RssAnon")) * 1024 / 1e9


def _ours(case: str, folder: Path, tokens: int) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from llama_nb import devices, loading, sharding
    from llama_nb.checkpoint import open_checkpoint
    from llama_nb.model import with_params
    from llama_nb.session import Session

    shape = CASES[case].get("mesh")
    devices.virtual_cpu_devices(1 if shape is None else math.prod(shape))
    mesh = None if shape is None else sharding.make_mesh(shape)
    checkpoint = open_checkpoint(folder)
    jax.block_until_ready(jnp.ones(8) + 1)  # what JAX itself takes is no part of loading
    with _Peak() as peak:
        start = time.perf_counter()
        params = loading.load_weights(
            checkpoint, dtype=jnp.bfloat16, quant=CASES[case].get("quant"), mesh=mesh
        )
        seconds = time.perf_counter() - start
    leaves = jax.tree.leaves(params)
    row = {
        "kept_gb": sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards) / 1e9,
        "read_gb": sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e9,
        "load_s": seconds,
        "anonymous_before_gb": peak.before,
        "peak_anonymous_gb": peak.gb,
    }
    if mesh is None and tokens:
        model = with_params(checkpoint.config, params)
        session = Session(model, 256)
        steps = session.tokens(session.feed([[128_000, 791, 6864, 315]]), tokens + 2)
        next(steps), next(steps)  # compiled
        start = time.perf_counter()
        count = sum(1 for _ in steps)
        row["tokens_per_s"] = count / (time.perf_counter() - start)
    return row


def _peer(case: str, folder: Path, tokens: int) -> dict[str, float]:
    import torch
    import transformers

    start = time.perf_counter()
    with _Peak() as peak, torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        seconds = time.perf_counter() - start
        model.eval()
        ids = torch.tensor([[128_000, 791, 6864, 315]])
        out = model(ids, use_cache=True)
        times = []
        for _ in range(tokens + 1):
            start = time.perf_counter()
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            times.append(time.perf_counter() - start)
    kept = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    # The first step may still read from the disk.
    rate = tokens / sum(times[1:])
    return {
        "kept_gb": kept,
        "load_s": seconds,
        "peak_anonymous_gb": peak.gb,
        "tokens_per_s": rate,
    }


if __name__ == "__main__":
    main()
