"""Byte pairs counted on a corpus of one's own."""

import collections
import itertools
import subprocess
import sys

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llama_nb.byte_pairs import LLAMA3_PATTERN
from llama_nb.data import train_bpe
from llama_nb.errors import InputError

TEXTS = ["low low low lower lower newest newest newest newest widest", "ünïcödé ☃ 2024", "a\n\n  b"]
DOCUMENTS = [{"text": text} for text in TEXTS]


def most_frequent(parts, words):
    pairs = collections.Counter()
    for word, pieces in parts.items():
        for pair in itertools.pairwise(pieces):
            pairs[pair] += words[word]
    best = max(pairs.values())
    return {pair for pair, count in pairs.items() if count == best}


def merge(pieces, pair):
    i = 0
    while i < len(pieces) - 1:
        if tuple(pieces[i : i + 2]) == pair:
            pieces[i : i + 2] = [pair[0] + pair[1]]
        i += 1


def test_every_merge_is_of_a_most_frequent_pair():
    words = collections.Counter(w for text in TEXTS for w in regex.findall(LLAMA3_PATTERN, text))
    parts = {word: [bytes([b]) for b in word.encode()] for word in words}
    for piece in train_bpe(DOCUMENTS, 258 + 12).vocabulary.pieces[258:]:
        chosen = [pair for pair in most_frequent(parts, words) if pair[0] + pair[1] == piece]
        assert chosen, f"{piece} was merged, and other pairs are more frequent"
        for pieces in parts.values():
            merge(pieces, chosen[0])


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, 270)


@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, bos=True), skip_special=True) == text


def test_the_ends(tokenizer):
    ids = tokenizer.encode("low", bos=True, eos=True)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.encode("<|end_of_text|>")[0] != 1
    assert tokenizer.stop_ids == {1}
    assert tokenizer.vocab_size == 270


def test_another_process_counts_the_same(tokenizer):
    code = (
        "from llama_nb.data import train_bpe\n"
        f"print(train_bpe({DOCUMENTS!r}, 270).vocabulary.pieces)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == repr(tokenizer.vocabulary.pieces)


def test_half_a_pair_of_surrogates():
    assert train_bpe([{"text": "ab \ud800 ab ab"}], 259).vocab_size == 259


def test_sizes_that_no_corpus_fills():
    with pytest.raises(InputError, match="a vocabulary of 257 is too small: 256 bytes and 2 ends"):
        train_bpe(DOCUMENTS, 257)
    with pytest.raises(InputError, match=r"pairs for a vocabulary of 2\d\d, and 5,000 was asked"):
        train_bpe(DOCUMENTS, 5000)
