"""What all tests share: JAX on the CPU, unless the environment names another platform."""

import json
import os
from types import SimpleNamespace

import pytest

from book import notebooks  # noqa: F401  (first: it notes the environment for the notebooks' kernels)
from llama_nb import devices

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Torch's threads spin while they wait: beside another worker's they would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
devices.virtual_cpu_devices(8)


@pytest.fixture(scope="session")
def write_model():
    """Return a function that writes a random model as a Hugging Face folder."""
    import numpy as np
    from safetensors.numpy import save_file

    from llama_nb.checkpoint.names import entries
    from llama_nb.config_files import to_hf

    def write(folder, config):
        rng, tensors = np.random.default_rng(0), {}
        for entry in entries(config):
            noise = rng.standard_normal(entry.stored_shape, np.float32) / 8
            tensors[entry.hf] = noise + (noise.ndim == 1)  # gains are near one
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**to_hf(config), "eos_token_id": [1, 2]}))
        return SimpleNamespace(path=folder, tensors=tensors)

    return write


@pytest.fixture
def quiet_datasets(tmp_path, monkeypatch):
    """Give `datasets` a cache of its own and no bars."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
