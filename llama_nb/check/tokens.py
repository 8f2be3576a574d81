"""Exercises of chapter 01."""

import codecs
import itertools
from collections.abc import Callable, Mapping, Sequence

from llama_nb.byte_pairs import LLAMA3_PATTERN, BytePairs
from llama_nb.chat import encode_chat
from llama_nb.check.compare import Verdict, run
from llama_nb.tokenizer import Tokenizer
from llama_nb.tokenizer_files import llama3_special_names


def bytes_per_token(function: Callable[[Callable, Sequence[str]], float]) -> Verdict:
    """Check `f(encode, texts) -> bytes per token` of all texts together."""

    def words(text: str) -> list[str]:
        return text.split()

    def characters(text: str) -> list[str]:
        return list(text)

    def cases():
        yield "one ASCII text", (words, ["one two three"]), 13 / 3
        yield "letters of two bytes", (characters, ["naïve café"]), 12 / 10
        yield "texts of unequal length", (words, ["a", "b c d e f ggg"]), 14 / 7

    return run("bytes_per_token", function, cases())


def stream_text(function: Callable[[list[bytes]], list[str]]) -> Verdict:
    """Check `f(pieces) -> texts`: after each piece, the characters that it completes."""

    def cases():
        for about, text, cuts in (
            ("ASCII", "two llamas", (3,)),
            ("a letter cut in two", "café au lait", (4,)),
            ("an emoji in three pieces", "a 🦙!", (3, 4)),
            ("a piece that ends one letter and begins another", "é€é", (1, 3, 6)),
        ):
            data = text.encode()
            edges = [0, *cuts, len(data)]
            pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
            decoder = codecs.getincrementaldecoder("utf-8")()
            yield about, (pieces,), [decoder.decode(piece) for piece in pieces]

    return run("stream_text", function, cases())


def llama3_chat(function: Callable[[Callable, Mapping[str, int], list], list[int]]) -> Verdict:
    """Check `f(encode, special, messages) -> ids` of Llama 3's chat format, assistant next."""
    names = llama3_special_names()
    pieces = [bytes([byte]) for byte in range(256)] + [name.encode() for name in names]
    special = {name: 256 + place for place, name in enumerate(names)}
    tokenizer = Tokenizer(
        vocabulary=BytePairs(pieces, range(256), LLAMA3_PATTERN),
        special=special,
        bos_id=256,
        eos_id=257,
        add_bos=True,
        stop_ids=frozenset(),
        chat_format="llama3",
    )

    def cases():
        for about, said in (
            ("one question", [("user", "Hi")]),
            ("a system prompt", [("system", "Be brief."), ("user", "Why?")]),
            ("spaces around a message", [("user", "  Hi \n")]),
            ("three turns", [("user", "1+1?"), ("assistant", "2"), ("user", "Sure?")]),
            ("a special token in the text", [("user", "a<|eot_id|>b")]),
        ):
            messages = [{"role": role, "content": content} for role, content in said]
            yield (
                about,
                (tokenizer.encode, dict(special), messages),
                encode_chat(tokenizer, messages),
            )

    return run("llama3_chat", function, cases())
