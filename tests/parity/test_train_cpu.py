"""The benchmark of training: it compares equal things, or stops."""

import subprocess
import sys

import pytest

from book import build

pytestmark = [pytest.mark.parity, pytest.mark.slow]


def test_benchmark_compares_the_same_training():
    """Three steps of AdamW from the same weights have the same losses, or the script fails."""
    pytest.importorskip("torch", reason="the reference needs torch")
    pytest.importorskip("transformers", reason="the reference is transformers")
    script = build.ROOT / "benchmarks/train_cpu.py"
    options = ["--size", "tiny", "--rounds", "1", "--steps", "1", "--no-compile"]
    run = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line[:32].strip() for line in run.stdout.splitlines()[2:6]]
    parties = ["ours", "transformers", "transformers, fused AdamW"]
    assert rows == [*parties, "a product of two large matrices"], run.stdout
    assert "ours over transformers:" in run.stdout
