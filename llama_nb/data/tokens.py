"""From documents to token ids, and which of them are kept to measure with."""

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_nb.errors import InputError
from llama_nb.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BATCH = 200  # Documents per call; the bar moves this often.


def tokenize(found: "Dataset | IterableDataset", tokenizer: Tokenizer) -> Any:
    """Return the documents with columns "ids", BOS and EOS included, and "bytes" of text.

    What was tokenized before, by the same tokenizer, is read from the cache of `datasets`.
    """

    def batch(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = rows["text"]
        return {
            "ids": [np.asarray(ids_of(text, tokenizer), np.int32) for text in texts],
            "bytes": [len(text.encode()) for text in texts],
        }

    options = {"batched": True, "batch_size": _BATCH, "remove_columns": ["text"]}
    if hasattr(found, "_fingerprint"):  # Stored. What is streamed is tokenized as it comes.
        name = f"{found._fingerprint} {fingerprint(tokenizer)}"
        options["new_fingerprint"] = hashlib.sha256(name.encode()).hexdigest()[:32]
        options["desc"] = "tokenizing"
    return found.map(batch, **options)


def pieces(tokenized: Any, T: int) -> Any:
    """Return documents cut into pieces that fill a row of T tokens, so that rows are shuffled.

    A row reads T tokens and predicts T, so neighbouring pieces share the token between them.
    Otherwise a file of a hundred rows would fill the batches of ten steps in a row.

    Parameters
    ----------
    tokenized
        From `tokenize`, stored or streamed.
    """
    options = {"desc": "cutting"} if hasattr(tokenized, "_fingerprint") else {}
    return tokenized.map(
        _cut, batched=True, remove_columns=["ids", "bytes"], fn_kwargs={"T": T}, **options
    )


def _cut(rows: dict[str, list[Any]], T: int) -> dict[str, list[Any]]:
    documents = (np.asarray(ids, np.int32) for ids in rows["ids"])
    return {"ids": [ids[i : i + T + 1] for ids in documents for i in range(0, len(ids) - 1, T)]}


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return a document's tokens, from BOS to EOS where the tokenizer has them."""
    ids = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
    return [*ids, tokenizer.eos_id] if tokenizer.eos_id is not None else ids


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return what two tokenizers share only if they cut texts into the same tokens."""
    found = hashlib.sha256(repr((tokenizer.bos_id, tokenizer.eos_id)).encode())
    for token in range(tokenizer.vocab_size):
        found.update(tokenizer.token_text(token).encode() + b"\0")
    return found.hexdigest()


def fingerprint_of(documents: Any, most: int = 64) -> str:
    """Return what two corpora of tokens share only if they are, very likely, the same.

    Of stored documents, up to `most` are looked at, evenly spread; of a stream the first.
    """
    if hasattr(documents, "__len__"):
        count = len(documents)
        places = sorted({i * (count - 1) // (most - 1) for i in range(most)}) if count else []
        rows = (documents[place] for place in places)
    else:
        count, rows = None, itertools.islice(documents, most)
    found = hashlib.sha256(repr(count).encode())
    for row in rows:
        found.update(np.asarray(row["ids"], np.int32).tobytes() + b"|")
    return found.hexdigest()[:16]


def split(found: Any, fraction: float) -> tuple[Any, Any]:
    """Return what to learn from and what to measure with, by a hash of each text.

    A text, or a conversation, is on the same side whatever the order, the version of the dataset
    or the host; copies of it are on one side, too.

    Raises
    ------
    InputError
        When `fraction` is not above 0 and below 1, or leaves one side empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the share kept for validation is {fraction}; it must be within 0 and 1.")
    edge = int(fraction * 2**32)

    def side(kept: bool) -> Callable[[dict[str, Any]], bool]:
        def here(row: dict[str, Any]) -> bool:
            text = row["text"] if "text" in row else json.dumps(row["messages"])
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            return (int.from_bytes(digest[:4], "big") < edge) == kept

        return here

    sides = found.filter(side(False)), found.filter(side(True))
    for part, what in zip(sides, ("learn from", "validate with"), strict=True):
        if next(iter(part), None) is None:
            raise InputError(
                f"with {fraction:.1%} for validation there is no document left to {what}; "
                "the corpus is too small, or choose another share."
            )
    return sides
