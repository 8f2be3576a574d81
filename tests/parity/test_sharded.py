"""Two by four devices: the sharded real model against the unsharded one and Hugging Face's."""

import jax.numpy as jnp
import numpy as np
import pytest

import llama_nb
from llama_nb import generation, sharding

pytestmark = [pytest.mark.parity, pytest.mark.slow]

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    # Two shots, then the question.
    "Country: Italy\nCapital: Rome\n\nCountry: Japan\nCapital: Tokyo\n\nCountry: France\nCapital:",
]


@pytest.fixture(scope="module")
def sharded(smollm2_path):
    mesh = sharding.make_mesh((2, 4))
    model, _ = llama_nb.load(smollm2_path, dtype=jnp.float32, mesh=mesh)
    assert len(model.layers[0].mlp.gate_proj[...].addressable_shards) == 8
    return model


@pytest.mark.parametrize("prompt", PROMPTS, ids=["plain", "code", "two-shot"])
def test_sharded_is_unsharded_is_the_reference(smollm2, hf_smollm2, sharded, prompt):
    import torch

    ids = smollm2.tokenizer.encode(prompt)
    with torch.no_grad():
        reference = hf_smollm2.model(torch.tensor([ids])).logits[0].numpy()
    whole = np.asarray(smollm2.model(jnp.array([ids])))[0]
    parts = np.asarray(sharded(jnp.array([ids])))[0]
    # Thirty layers, logits up to 40: a few roundings of float32.
    assert np.abs(parts - whole).max() < 2e-4
    assert np.abs(parts - reference).max() < 2e-3
    texts = [
        generation.generate(model, smollm2.tokenizer, prompt, max_new_tokens=12)
        for model in (smollm2.model, sharded)
    ]
    assert texts[0] == texts[1]


def test_two_shots_are_understood(smollm2, sharded):
    text = generation.generate(sharded, smollm2.tokenizer, PROMPTS[2], max_new_tokens=2)
    assert text.strip() == "Paris"
