"""Meta's own model code, random weights: the checkpoint it saves gives the logits it computes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.model import with_params

pytestmark = pytest.mark.parity

SHAPES = {
    "llama1": {"n_heads": 4, "n_kv_heads": None, "rope_theta": 10_000.0, "norm_eps": 1e-6},
    "llama3": {"n_heads": 8, "n_kv_heads": 2, "rope_theta": 500_000.0, "ffn_dim_multiplier": 1.3},
    "llama3.1": {"n_heads": 8, "n_kv_heads": 2, "rope_theta": 500_000.0, "use_scaled_rope": True},
}


def save(model, args, folder):
    """Write a folder as Meta publishes it."""
    import torch

    torch.save(model.state_dict(), folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(args))


@pytest.mark.parametrize("name", SHAPES)
def test_logits(meta, tmp_path, name):
    import torch

    args = {"dim": 128, "n_layers": 3, "vocab_size": 320, "multiple_of": 32, **SHAPES[name]}
    reference = meta(max_seq_len=512, **args)
    save(reference, args, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = with_params(checkpoint.config, load_params(checkpoint))
    ids = np.random.default_rng(0).integers(0, 320, (2, 300))
    expected = reference(torch.tensor(ids), 0).numpy()
    assert np.abs(expected).max() > 1  # the comparison below means something
    np.testing.assert_allclose(model(jnp.asarray(ids)), expected, atol=1e-4)


def test_logits_past_8192_under_scaling(meta, tmp_path):
    import torch

    args = {"dim": 64, "n_layers": 1, "vocab_size": 96, "multiple_of": 32, **SHAPES["llama3.1"]}
    reference = meta(max_seq_len=9216, **args)
    save(reference, args, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = with_params(checkpoint.config, load_params(checkpoint))
    ids = np.random.default_rng(0).integers(0, 96, (1, 16))
    # Positions far out, with nothing before them: RoPE there, without 8,192 squared scores.
    reference.freqs_cis = reference.freqs_cis[9000:]
    expected = reference(torch.tensor(ids), 0).numpy()
    got = model(jnp.asarray(ids), positions=9000 + jnp.arange(16)[None])
    np.testing.assert_allclose(got, expected, atol=1e-4)
