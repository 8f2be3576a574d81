"""A byte-pair vocabulary of a corpus' own."""

import json
from collections.abc import Iterator
from typing import Any

from llama_nb.byte_pairs import LLAMA3_PATTERN, from_merges
from llama_nb.errors import InputError
from llama_nb.tokenizer import Tokenizer

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SMALLEST = 256 + 2  # Every byte, and the two ends.


def train_bpe(documents: Any, vocab_size: int) -> Tokenizer:
    """Return a tokenizer whose merges are the most frequent pairs of a corpus.

    Words are split as Llama 3 splits them. Every byte is a token, so any text has its tokens. The
    library `tokenizers` counts; the same corpus gives the same merges every time.

    Parameters
    ----------
    documents
        From `corpus.documents`, stored or streamed: a column "text".
    vocab_size
        Tokens in all: two that begin and end a text, 256 bytes, the rest merged.

    Raises
    ------
    InputError
        When the vocabulary is too small for the bytes, or larger than what the corpus has to merge.

    References
    ----------
    Sennrich et al. 2016, algorithm 1.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainable

    if vocab_size < SMALLEST:
        raise InputError(
            f"a vocabulary of {vocab_size} is too small: 256 bytes and 2 ends are {SMALLEST}."
        )
    found = Trainable(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found.train_from_iterator(_texts(documents), trainer)
    model = json.loads(found.to_str())["model"]
    if len(model["vocab"]) < vocab_size:
        raise InputError(
            f"the corpus has pairs for a vocabulary of {len(model['vocab']):,}, and "
            f"{vocab_size:,} was asked for; choose a smaller one or a larger corpus."
        )
    special = {name: model["vocab"][name] for name in (BOS, EOS)}
    pairs = from_merges(
        {i: name for name, i in model["vocab"].items()},
        special,
        model["merges"],
        LLAMA3_PATTERN,
        whole_words=False,
        where="the trained vocabulary",
    )
    return Tokenizer(
        vocabulary=pairs,
        special=special,
        bos_id=special[BOS],
        eos_id=special[EOS],
        add_bos=True,
        stop_ids=frozenset({special[EOS]}),
        chat_format=None,
    )


def _texts(documents: Any) -> Iterator[str]:
    for row in documents:
        # As our tokenizer does: half a surrogate pair has no UTF-8.
        yield row["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
