"""The real model: our logits and our words against Hugging Face's, from the same file."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from llama_nb import chat

pytestmark = [pytest.mark.parity, pytest.mark.slow]

TEXTS = [
    "A",
    "The quick brown fox jumps over the lazy dog.",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "Il était une fois, dans un pays lointain, 42 chats – 🐈 – et 猫.",
    "In 1969 people walked on the Moon for the first time. " * 36,
]

QUESTIONS = [
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "What is 12 plus 30?",
    "Name three primary colours.",
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "What does a compiler do?",
    "Translate 'good morning' into Spanish.",
    "How many legs does a spider have?",
    "What is photosynthesis?",
    "Give me a recipe for pancakes.",
    "Who was the first person on the Moon?",
    "What is the largest planet?",
    "Explain gravity to a child.",
    "Write a Python function that reverses a list.",
    "What is the boiling point of water?",
    "List the days of the week.",
    "What is a prime number?",
    "Tell me a story about a dragon. 🐉",
    "What's the difference between a llama and an alpaca?",
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text)}-characters")
def test_logits(smollm2, hf_smollm2, text):
    import torch

    ids = smollm2.tokenizer.encode(text)[:400]
    with torch.no_grad():
        expected = hf_smollm2.model(torch.tensor([ids])).logits[0].numpy()
    got = np.asarray(smollm2.model(jnp.array([ids])))[0]
    assert np.abs(got - expected).max() < 2e-3


@pytest.mark.parametrize("question", QUESTIONS)
def test_sixty_four_greedy_tokens(smollm2, hf_smollm2, greedy, question):
    ids = chat.encode_chat(smollm2.tokenizer, [{"role": "user", "content": question}])
    ours, theirs = greedy(smollm2.model, hf_smollm2.model, ids, 64)
    assert ours == theirs


def test_it_knows_paris(smollm2):
    import llama_nb

    answer = llama_nb.generate(smollm2.model, smollm2.tokenizer, QUESTIONS[0], chat=True)
    assert answer == "The capital of France is Paris."


def test_a_folder_saved_by_transformers_is_the_same_model(smollm2, hf_smollm2, tmp_path):
    import jax

    import llama_nb
    from llama_nb.model import params_of

    # A model read from GGUF refuses to be saved; the same weights in a plain one do not.
    config = hf_smollm2.model.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(hf_smollm2.model)(type(hf_smollm2.model.config)(**config))
    plain.load_state_dict(hf_smollm2.model.state_dict())
    plain.save_pretrained(tmp_path, max_shard_size="200MB")
    if json.loads(hf_smollm2.tokenizer.backend_tokenizer.to_str())["model"]["byte_fallback"]:
        pytest.skip("this transformers reads SmolLM2's GGUF as no byte-level tokenizer")
    hf_smollm2.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, tokenizer = llama_nb.load(tmp_path, dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(smollm2.model))
    answer = llama_nb.generate(model, tokenizer, QUESTIONS[0], chat=True)
    assert answer == "The capital of France is Paris."
