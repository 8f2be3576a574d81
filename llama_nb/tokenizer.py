"""Text to token ids and back, for every Llama: `load` reads whichever file the model came with."""

import codecs
import dataclasses
import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llama_nb import tokenizer_files as files
from llama_nb.byte_pairs import BytePairs
from llama_nb.errors import InputError, MissingFileError
from llama_nb.sentence_pieces import SentencePieces


@dataclasses.dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Tokenizer:
    """Text to token ids and back. Made by `load` or a `from_` constructor; never changes.

    Attributes
    ----------
    special : mapping of str to int
        The tokens that no plain text becomes, such as `<|eot_id|>`.
    bos_id, eos_id : int or None
        What begins and ends a text.
    add_bos : bool
        Whether a prompt should begin with `bos_id`.
    stop_ids : frozenset of int
        Every token that ends a turn or a text.
    chat_format : str or None
        How `llama_nb.chat` writes a conversation: 'llama3', 'chatml', 'llama2' or 'deepseek'; None
        for a base model. Meta's own files do not tell base from chat, so there it is never None.
    default_system : str or None
        The system prompt of a conversation that brings none.
    opens_thought : bool
        Whether the template starts the assistant's turn with `<think>`.
    shown : frozenset of int
        The special tokens, such as `<think>`, that `skip_special` does not skip.
    """

    vocabulary: BytePairs | SentencePieces
    special: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    stop_ids: frozenset[int]
    chat_format: str | None
    default_system: str | None = None
    opens_thought: bool = False
    shown: frozenset[int] = frozenset()

    def __post_init__(self):
        object.__setattr__(self, "special", MappingProxyType(dict(self.special)))
        hidden = frozenset(self.special.values()) - self.shown
        object.__setattr__(self, "_hidden", hidden)
        # Longest first, so that of two tokens where one begins with the other the longer is found.
        names = sorted(self.special, key=len, reverse=True)
        object.__setattr__(self, "_finder", re.compile("|".join(map(re.escape, names)) or "(?!)"))

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, chat_format={self.chat_format!r})"

    @property
    def vocab_size(self) -> int:
        """The number of token ids, special ones included."""
        return len(self.vocabulary.pieces)

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False
    ) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        text : str
            Any string; half a surrogate pair becomes U+FFFD, as UTF-8 cannot hold it.
        bos, eos : bool
            Whether to begin with `bos_id` and end with `eos_id`.
        allow_special : bool
            Whether the text `<|eot_id|>` becomes that token. By default it is text like any other,
            so that nothing a user types can end a turn or begin another.

        Raises
        ------
        InputError
            When `text` is not a string, or the vocabulary has no such begin or end token.
        """
        if not isinstance(text, str):
            raise InputError(f"Only a string can be encoded, not {type(text).__name__}.")
        for wanted, token, name in ((bos, self.bos_id, "begin"), (eos, self.eos_id, "end")):
            if wanted and token is None:
                raise InputError(f"{self!r} has no {name}-of-text token; leave it out.")
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids, start = [self.bos_id] if bos else [], 0
        for match in self._finder.finditer(text) if allow_special else ():
            ids += self.vocabulary.encode(text[start : match.start()])
            ids.append(self.special[match.group()])
            start = match.end()
        ids += self.vocabulary.encode(text[start:])
        return [*ids, self.eos_id] if eos else ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; they need not be whole characters.

        Raises
        ------
        InputError
            When the vocabulary has no such id.
        """
        try:
            place = operator.index(token_id)
        except TypeError:
            raise InputError(f"A token id is a whole number, not {token_id!r}.") from None
        if not 0 <= place < self.vocab_size:
            raise InputError(
                f"Token id {place} is outside the vocabulary, which goes from 0 to "
                f"{self.vocab_size - 1}; do the model and the tokenizer belong together?"
            )
        return self.vocabulary.pieces[place]

    def token_text(self, token_id: int) -> str:
        r"""Return a token in printable form: ` the`, `\n`, `\xe2\x80` for part of a letter."""
        text = self.token_bytes(token_id).decode(errors="backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of token ids; bytes that form no character become U+FFFD.

        Raises
        ------
        InputError
            When an id is outside the vocabulary.
        """
        stream = self.stream(skip_special=skip_special)
        return b"".join(map(stream.piece, ids)).decode(errors="replace")

    def stream(self, *, skip_special: bool = True, continued: bool = False) -> "StreamDecoder":
        """Return a decoder for ids that come one at a time.

        Parameters
        ----------
        skip_special : bool
            Whether special tokens print nothing.
        continued : bool
            Whether the text goes on from a prompt. It matters for Llama 1 and 2 only, whose first
            word otherwise loses its leading space.
        """
        return StreamDecoder(self, skip_special, continued)

    @classmethod
    def from_llama3(cls, path: str | Path, *, chat_format: str | None = "llama3") -> "Tokenizer":
        """Read Meta's `tokenizer.model` of Llama 3 (a list of byte pairs in base64).

        Raises
        ------
        MissingFileError, CorruptFileError
            When the file is absent or something else.

        Notes
        -----
        The splitting pattern and the special tokens, which the file lacks, are those of
        `models/llama3/tokenizer.py` in Meta's `llama-models` 0.3.0.
        """
        return cls(**files.read_llama3(path), chat_format=chat_format)

    @classmethod
    def from_sentencepiece(
        cls, path: str | Path, *, chat_format: str | None = "llama2"
    ) -> "Tokenizer":
        """Read Meta's `tokenizer.model` of Llama 1 and 2 (a SentencePiece model).

        Raises
        ------
        MissingFileError, CorruptFileError
            When the file is absent or something else.
        MissingDependencyError
            When the `sentencepiece` package is not installed.
        """
        return cls(**files.read_sentencepiece(path), chat_format=chat_format)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Build the tokenizer that a GGUF file's metadata holds.

        Parameters
        ----------
        metadata : mapping of str to object
            Key to value, `tokenizer.ggml.tokens` and so on, in Python strings, numbers and lists.

        Raises
        ------
        InputError
            When a key is missing, or the vocabulary is of a kind no Llama has.
        CorruptFileError
            When the lists contradict each other.
        """
        return cls(**files.read_gguf(metadata))

    @classmethod
    def from_hf(cls, folder: str | Path) -> "Tokenizer":
        """Read a Hugging Face folder: `tokenizer.json` and the small files beside it.

        Raises
        ------
        MissingFileError, CorruptFileError
            When `tokenizer.json` is absent or broken.
        InputError
            When it describes a tokenizer of a kind no Llama has.
        """
        return cls(**files.read_hf(folder))


class StreamDecoder:
    """Turns ids into text one at a time, holding back bytes until they are a whole character."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, continued: bool = False):
        self._tokenizer = tokenizer
        self._skip = tokenizer._hidden if skip_special else frozenset()
        # SentencePiece puts a space before a text and takes it off again here.
        self._strip = tokenizer.vocabulary.dummy_prefix and not continued
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def piece(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text so far."""
        data = self._tokenizer.token_bytes(token_id)
        token_id = int(token_id)  # a NumPy or JAX scalar need not be hashable
        if token_id in self._skip:
            return b""
        if self._strip and token_id not in self._tokenizer._hidden:
            self._strip = False
            return data.removeprefix(b" ")
        return data

    def push(self, token_id: int) -> str:
        """Return the characters that a token completes, perhaps none."""
        return self._decoder.decode(self.piece(token_id))

    def flush(self) -> str:
        """Return U+FFFD if the ids ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer from whatever a model came with.

    Parameters
    ----------
    path : str or Path
        A `tokenizer.json`, a `tokenizer.model` of any Llama, a `.gguf` file, or a folder that
        holds one of them.

    Raises
    ------
    MissingFileError
        When there is nothing of the sort.
    CorruptFileError, InputError
        When the file is broken or of a kind no Llama has.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / "tokenizer.json", path / "tokenizer.model", *sorted(path.glob("*.gguf"))]
        found = [file for file in found if file.is_file()]
        if not found:
            raise MissingFileError(
                f"{path} holds no tokenizer.json, tokenizer.model or .gguf file; copy one there."
            )
        path = found[0]
    if path.suffix == ".json":
        return Tokenizer.from_hf(files.existing(path).parent)
    with files.existing(path).open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"GGUF"):
        return Tokenizer.from_gguf(files.read_gguf_metadata(path))
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", head):
        return Tokenizer.from_llama3(path)
    return Tokenizer.from_sentencepiece(path)
