"""Rotary frequencies and rotations against Meta's and Hugging Face's own functions."""

import jax.numpy as jnp
import numpy as np
import pytest

from llama_nb import layers
from llama_nb.config import RopeScaling

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the references need torch")


@pytest.fixture(scope="module")
def meta_model(torch):
    pytest.importorskip("fairscale", reason="Meta's model needs it")
    return pytest.importorskip("llama_models.llama3.model", reason="the reference is llama_models")


@pytest.fixture(scope="module")
def hf_frequencies(torch):
    """Return Hugging Face's frequencies of a llama3-scaled config."""
    pytest.importorskip("transformers", reason="the reference is transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def frequencies(head_dim, theta, scaling):
        config = LlamaConfig(
            hidden_size=4 * head_dim,
            num_attention_heads=4,
            head_dim=head_dim,
            max_position_embeddings=131_072,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            },
        )
        found, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        assert attention_factor == 1.0
        return found.numpy()

    return frequencies


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama_3_1s_bands_are_hugging_faces(hf_frequencies, head_dim, factor):
    scaling = RopeScaling(factor=factor)
    expected = hf_frequencies(head_dim, 500_000.0, scaling)
    got = layers.rope_frequencies(head_dim, 500_000.0, scaling)
    np.testing.assert_allclose(got, expected, rtol=1e-6)  # they compute in float32


def test_other_bands_are_hugging_faces(hf_frequencies):
    scaling = RopeScaling(factor=4.0, low_freq_factor=2.0, high_freq_factor=16.0)
    expected = hf_frequencies(64, 100_000.0, scaling)
    got = layers.rope_frequencies(64, 100_000.0, scaling)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama_3_1s_bands_are_metas(torch, meta_model, head_dim):
    plain = 1.0 / 500_000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    expected = meta_model.apply_scaling(plain).numpy()  # whose factor is always 8
    got = layers.rope_frequencies(head_dim, 500_000.0, RopeScaling(factor=8.0))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_rotation_is_metas_in_the_other_layout(torch, meta_model, scaled):
    H, positions = 64, np.array([0, 1, 17, 511, 8191])
    q, k = np.random.default_rng(0).standard_normal((2, 1, len(positions), 3, H)).astype("f")
    turns = meta_model.precompute_freqs_cis(H, 8192, 500_000.0, scaled)[positions]
    rotated = meta_model.apply_rotary_emb(torch.tensor(q), torch.tensor(k), turns)
    frequencies = layers.rope_frequencies(H, 500_000.0, RopeScaling() if scaled else None)
    cos, sin = layers.rope_angles(jnp.asarray(positions)[None], frequencies)
    halves = np.r_[0:H:2, 1:H:2]  # where each feature of our layout is in Meta's
    for ours, theirs in zip((q, k), rotated, strict=True):
        got = layers.rope(jnp.asarray(ours[..., halves]), cos, sin)
        # A float32 angle near 8,191 is known to 2**-12 rad or so.
        np.testing.assert_allclose(got, theirs.numpy()[..., halves], atol=2e-3)


@pytest.mark.parametrize("scaled", [False, True])
def test_rotation_is_hugging_faces(torch, hf_frequencies, scaled):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    H, positions = 64, np.array([0, 1, 17, 511, 8191])
    q, k = np.random.default_rng(1).standard_normal((2, 1, len(positions), 3, H)).astype("f")
    frequencies = layers.rope_frequencies(H, 500_000.0, RopeScaling() if scaled else None)
    angles = np.tile(positions[:, None] * frequencies, 2).astype("f")[None]  # (1, T, H)
    heads_first = [torch.tensor(x.transpose(0, 2, 1, 3)) for x in (q, k)]
    rotated = apply_rotary_pos_emb(
        *heads_first, torch.tensor(np.cos(angles)), torch.tensor(np.sin(angles))
    )
    cos, sin = layers.rope_angles(jnp.asarray(positions)[None], frequencies)
    for ours, theirs in zip((q, k), rotated, strict=True):
        got = layers.rope(jnp.asarray(ours), cos, sin)
        np.testing.assert_allclose(got, theirs.numpy().transpose(0, 2, 1, 3), atol=2e-3)
