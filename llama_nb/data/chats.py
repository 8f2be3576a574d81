"""Conversations to learn answers from."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_nb.chat import encode_chat, end_of_turn
from llama_nb.data import corpus
from llama_nb.data.tokens import fingerprint
from llama_nb.errors import InputError
from llama_nb.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BATCH = 100  # Conversations per call.


def conversations(
    source: str | Path | Sequence[Sequence[Mapping[str, str]]],
    *,
    column: str = "messages",
    split: str = "train",
    streaming: bool = False,
) -> "Dataset | IterableDataset":
    """Return conversations, one per row, in a column "messages".

    Parameters
    ----------
    source
        A .jsonl, .json or .parquet file, or a dataset on the Hugging Face Hub, as owner/name or
        owner/name:configuration; or conversations themselves, each a list of
        `{"role": "system" | "user" | "assistant", "content": text}`.
    column
        Where files and datasets have them.
    split
        Of a dataset on the Hub.
    streaming
        Read as it is needed.

    Raises
    ------
    LlamaError
        In one sentence, when there is no such source or column, or no conversation in it.
    """
    import datasets
    import pyarrow

    if isinstance(source, str | Path):
        found, name = corpus.rows(source, split, streaming), str(source)
    else:
        column, name = "messages", "the list"
        try:
            rows = [{"messages": list(messages)} for messages in source]
            found = datasets.Dataset.from_list(rows)
        except (TypeError, pyarrow.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f'write every conversation as a list of {{"role": ..., "content": ...}}: {reason}'
            ) from None
        found = found.to_iterable_dataset() if streaming else found
    found = corpus.only(found, column, "messages", name) if next(iter(found), None) else found
    if next(iter(found), None) is None:
        raise InputError(f"{name} has no conversation to learn from.")
    return found


def marked(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> tuple[list[int], Any]:
    """Return a conversation's tokens, and which of them the assistant has to say.

    These are its answers, each up to the token that ends the turn. All else is given to it: the
    other messages, and the frame around all of them. What comes after the last answer is left out.

    Parameters
    ----------
    messages
        As `chat.encode_chat` takes them.
    tokenizer
        Its `chat_format` says how they are written.

    Returns
    -------
    tuple
        Token ids, and a boolean array of the same length.

    Raises
    ------
    InputError
        When there is no answer, nothing before the first one, or a conversation that the format
        has no words for.

    Notes
    -----
    An answer begins with the first token that the prompt for it, as the model will see it, doesn't
    have. In 'chatml' this may hold the newline before the answer as well, if the answer begins
    with blanks and the tokenizer has a token for both. It ends with the next end of a turn:
    contents hold none, whatever they say. 'deepseek' leaves out what an answer thought, so it is
    not learnt.
    """
    roles = [m.get("role") if isinstance(m, Mapping) else None for m in messages]
    answers = [place for place, role in enumerate(roles) if role == "assistant"]
    if not answers:
        raise InputError("no message is the assistant's, so there is no answer to learn.")
    if answers[0] == 0:
        raise InputError("it begins with the assistant's answer, and nothing to answer.")
    whole = encode_chat(tokenizer, messages[: answers[-1] + 1], add_generation_prompt=False)
    learn, stop = np.zeros(len(whole), bool), end_of_turn(tokenizer)
    for place in answers:
        prompt = encode_chat(tokenizer, messages[:place])
        pairs = enumerate(zip(prompt, whole, strict=False))
        first = next((at for at, (ours, theirs) in pairs if ours != theirs), len(prompt))
        learn[first : whole.index(stop, first) + 1] = True
    return whole, learn


def tokenize_chats(found: "Dataset | IterableDataset", tokenizer: Tokenizer) -> Any:
    """Return conversations with columns "ids", "learn" and "bytes".

    "learn" says of every token whether it is to be predicted (`marked`), and "bytes" how long the
    text of those is.

    Raises
    ------
    InputError
        When a conversation can't be learnt from; it says which.
    """

    def batch(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"ids": [], "learn": [], "bytes": []}
        stop = end_of_turn(tokenizer)
        for number, messages in zip(numbers, rows["messages"], strict=True):
            try:
                ids, learn = marked(messages, tokenizer)
            except InputError as error:
                raise InputError(f"conversation {number}: {error}") from None
            said = [ids[at] for at in np.flatnonzero(learn)]
            out["ids"].append(np.asarray(ids, np.int32))
            out["learn"].append(learn)
            out["bytes"].append(sum(len(tokenizer.token_bytes(i)) for i in said if i != stop))
        return out

    options: dict[str, Any] = {"batched": True, "batch_size": _BATCH, "with_indices": True}
    if hasattr(found, "_fingerprint"):  # Stored, as in `tokens.tokenize`.
        frame = (tokenizer.chat_format, tokenizer.default_system, tokenizer.opens_thought)
        name = f"{found._fingerprint} {fingerprint(tokenizer)} {frame}"
        options["new_fingerprint"] = hashlib.sha256(name.encode()).hexdigest()[:32]
        options["desc"] = "tokenizing"
    return found.map(batch, remove_columns=["messages"], **options)
