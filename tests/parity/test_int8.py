"""What int8 costs the real model on 20,000 tokens of the standard library's documentation."""

import pydoc_data.topics

import pytest

import llama_nb
from llama_nb.perplexity import perplexity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(smollm2):
    topics = pydoc_data.topics.topics
    return smollm2.tokenizer.encode("\n".join(topics[key] for key in sorted(topics)))[:20_000]


def test_perplexity_rises_by_less_than_a_percent(smollm2, smollm2_path, text):
    small, _ = llama_nb.load(smollm2_path, quant="int8")
    wide = perplexity(smollm2.model, text)
    assert 5 < wide < 30
    assert perplexity(small, text) < 1.01 * wide
    assert perplexity(small, text, cache_dtype="int8") < 1.015 * wide
