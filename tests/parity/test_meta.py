"""Meta's own model code, random weights: the checkpoint it saves gives the logits it computes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.checkpoint.names import entries
from llama_nb.model import with_params

pytestmark = pytest.mark.parity

SHAPES = {
    "llama1": {"n_heads": 4, "n_kv_heads": None, "rope_theta": 10_000.0, "norm_eps": 1e-6},
    "llama3": {"n_heads": 8, "n_kv_heads": 2, "rope_theta": 500_000.0, "ffn_dim_multiplier": 1.3},
    "llama3.1": {"n_heads": 8, "n_kv_heads": 2, "rope_theta": 500_000.0, "use_scaled_rope": True},
}


def cut_axes(model, embedding_axis):
    """Where fairscale's layers cut each weight: by their type, not by our list of names."""
    from fairscale.nn.model_parallel import layers

    axes = {
        layers.ColumnParallelLinear: 0,
        layers.RowParallelLinear: 1,
        layers.VocabParallelEmbedding: embedding_axis,
    }
    return {f"{name}.weight": axes.get(type(module)) for name, module in model.named_modules()}


def save(model, args, folder, pieces=1, embedding_axis=0):
    """Write a folder as Meta publishes it, one file per model-parallel rank."""
    import torch

    axes = cut_axes(model, embedding_axis)
    for number in range(pieces):
        piece = {}
        for name, weight in model.state_dict().items():
            axis = axes[name]
            part = weight if axis is None else torch.chunk(weight, pieces, axis)[number]
            piece[name] = part.clone()
        torch.save(piece, folder / f"consolidated.{number:02d}.pth")
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


# Llama 1 and 2 cut the embedding along D and leave the vocabulary's size to its rows.
PIECES = {"llama1": (1, {"vocab_size": -1}), "llama3": (0, {}), "llama3.1": (0, {})}


@pytest.mark.parametrize("pieces", [1, 2, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_from_pieces(meta, tmp_path, name, pieces):
    import torch

    embedding_axis, unsaid = PIECES[name]
    args = {"dim": 128, "n_layers": 2, "vocab_size": 320, "multiple_of": 32, **SHAPES[name]}
    args |= {"n_heads": 16, "n_kv_heads": None if name == "llama1" else 8}
    reference = meta(seed=pieces, max_seq_len=64, **args)
    save(reference, {**args, **unsaid}, tmp_path, pieces, embedding_axis)
    assert len(list(tmp_path.glob("*.pth"))) == pieces
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.vocab_size == 320
    model = with_params(checkpoint.config, load_params(checkpoint))
    ids = np.random.default_rng(0).integers(0, 320, (2, 50))
    expected = reference(torch.tensor(ids), 0).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(model(jnp.asarray(ids)), expected, atol=1e-4)
    rng = np.random.default_rng(1)
    for entry in entries(checkpoint.config):
        whole, index = checkpoint.read(entry), []
        for size in entry.shape:  # slices that end anywhere, also across the pieces
            low, high = sorted(rng.choice(size + 1, 2, replace=False))
            index.append(slice(int(low), int(high)))
        part = checkpoint.read(entry, tuple(index))
        np.testing.assert_array_equal(part, whole[tuple(index)])


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
