"""Byte pairs, the vocabulary of Llama 3 and SmolLM2: which bytes a token is, and how text splits.

What is special about some tokens, and which file they come from, is `tokenizer`'s business.
"""

import base64
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llama_nb.errors import CorruptFileError

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
LLAMA3_PATTERN = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_PATTERN = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
# SmolLM2 cuts at every digit first and applies GPT-2's pattern to what lies between. In one
# pattern: a digit stands alone, takes no leading space, and ends a run of spaces as the end of
# the text would.
SMOLLM_PATTERN = (
    rf"{_CONTRACTIONS}|\p{{N}}| ?\p{{L}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?![^\s\p{{N}}])|\s+"
)

# tiktoken overflows its stack on endless runs of one kind; these are the limits Meta chose.
_MAX_CHARS = 400_000
_MAX_RUN = 25_000


def byte_letters() -> dict[str, int]:
    """Return GPT-2's alphabet: the printable letter that stands for each byte in a token's name."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(hidden)},
    }


def _chunks(text: str) -> Iterator[str]:
    """Cut a text where Meta's tokenizer does, so that no chunk can overflow the splitter."""
    for first in range(0, len(text), _MAX_CHARS):
        chunk = text[first : first + _MAX_CHARS]
        start = 0
        if len(chunk) > _MAX_RUN:
            for run in re.finditer(r"\s+|\S+", chunk):
                for cut in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
                    yield chunk[start:cut]
                    start = cut
        yield chunk[start:]


class BytePairs:
    """A byte-pair vocabulary: text is split by a pattern, then pairs merge, lowest rank first.

    Parameters
    ----------
    pieces : list[bytes]
        What each token id stands for.
    order : iterable of int
        The ids that merging can produce, in the order of their ranks.
    pattern : str
        The regular expression that splits a text into words.

    Attributes
    ----------
    ranks : dict of bytes to int
        The pieces that merging can produce; of two the one of lower rank is made first.

    Raises
    ------
    CorruptFileError
        When the pattern is not a regular expression that covers every text.
    """

    dummy_prefix = False

    def __init__(self, pieces: list[bytes], order: Iterable[int], pattern: str):
        import tiktoken

        self.pieces = pieces
        order = list(order)
        # Ranks need only rise, so ids that do already (nearly all files) serve as their own ranks.
        rising = all(a < b for a, b in itertools.pairwise(order))
        self._ids = None if rising else order
        ranks = {pieces[i]: i if rising else rank for rank, i in enumerate(order)}
        self.pattern, self.ranks = pattern, ranks
        self._missing = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        try:
            self._tiktoken = tiktoken.Encoding(
                "llama_nb", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
            probe = "ab 1\t2  \n!?é'S "
            kept = b"".join(pieces[i] for i in self.encode(probe))
        except ValueError as error:
            raise CorruptFileError(
                f"The tokenizer's splitting pattern {pattern!r} cannot be used ({error})."
            ) from None
        if kept != probe.encode().translate(None, self._missing):
            raise CorruptFileError(
                f"The tokenizer's splitting pattern {pattern!r} drops part of the text {probe!r}."
            )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, in which nothing is special."""
        found: list[int] = []
        for chunk in _chunks(text):
            data = chunk.encode()
            if self._missing and len(data.translate(None, self._missing)) != len(data):
                found += self._encode_without_missing(chunk)
            else:
                found += self._tiktoken.encode_ordinary(chunk)
        return found if self._ids is None else [self._ids[rank] for rank in found]

    def _encode_without_missing(self, text: str) -> list[int]:
        # SmolLM2 has no token for 21 of the 256 bytes (some control characters, and what only
        # unassigned planes use). The Hugging Face library drops such a byte after splitting, so
        # that its neighbours may merge; tiktoken would panic.
        import regex

        found = []
        for word in regex.findall(self.pattern, text):
            if data := word.encode().translate(None, self._missing):
                found += self._tiktoken._encode_single_piece(data)
        return found


def read_tiktoken(path: Path) -> list[bytes]:
    """Return the byte pairs of a tiktoken file such as Llama 3's `tokenizer.model`, in rank order.

    Raises
    ------
    CorruptFileError
        When a line is not a base64 token and its rank, or a rank is missing or doubled.
    """
    ranks: dict[int, bytes] = {}
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[int(rank)] = base64.b64decode(token, validate=True)
        except ValueError:
            raise CorruptFileError(
                f"{path}, line {number}: expected a base64 token and its rank; fetch it again."
            ) from None
    if not lines or sorted(ranks) != list(range(len(lines))):
        raise CorruptFileError(f"{path}: its ranks do not count up from 0; fetch the file again.")
    return [ranks[rank] for rank in range(len(ranks))]


def from_merges(
    names: Mapping[int, str],
    literal: Mapping[str, int],
    merges: Sequence[str] | Sequence[Sequence[str]],
    pattern: str,
    *,
    whole_words: bool,
    where: str,
) -> BytePairs:
    """Return the vocabulary that a GGUF file or a `tokenizer.json` spells out.

    Parameters
    ----------
    names : mapping of int to str
        Every token's name, in GPT-2's byte letters.
    literal : mapping of str to int
        The special tokens, whose name is their text and which no merge makes.
    merges : sequence
        The pairs, `"a b"` or `["a", "b"]`, first merged first.
    pattern : str
        The regular expression that splits a text into words.
    whole_words : bool
        Whether a word that is a token is taken at once (`ignore_merges`, Llama 3), so that tokens
        which no merge makes can occur too.
    where : str
        What to call the file in an error message.

    Raises
    ------
    CorruptFileError
        When ids have gaps, or merges are not ones that ranks alone can express.

    Notes
    -----
    A merge list says which pairs merge and when; ranks say only when a piece may be made, from any
    two parts. The two agree when every merge builds on pieces that earlier ones made, which is
    how training makes them and what is checked here.
    """
    if sorted(names) != list(range(len(names))):
        raise CorruptFileError(f"{where}: its token ids do not count up from 0; fetch it again.")
    letters, special = byte_letters(), set(literal.values())

    def spell(name: str) -> bytes:
        try:
            return bytes(letters[letter] for letter in name)
        except KeyError:
            return name.encode(errors="replace")

    pieces = [
        names[i].encode(errors="replace") if i in special else spell(names[i])
        for i in range(len(names))
    ]
    ids = {names[i]: i for i in range(len(names)) if i not in special}
    # A dict, not a set: it keeps the order in which pieces become known, which is their rank.
    known = {i: None for letter, i in sorted(ids.items(), key=lambda x: x[1]) if letter in letters}
    for number, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        made = ids.get(left + right)
        if made is None or not (
            whole_words or (ids.get(left) in known and ids.get(right) in known)
        ):
            raise CorruptFileError(
                f"{where}: merge {number} ({left!r} with {right!r}) makes no token or builds on a "
                "piece that no earlier merge made; this vocabulary is not supported."
            )
        known.setdefault(made)
    if whole_words:
        known.update(dict.fromkeys(sorted(ids.values())))
    return BytePairs(pieces, known, pattern)
