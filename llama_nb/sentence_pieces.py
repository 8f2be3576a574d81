"""SentencePiece, the vocabulary of Llama 1 and 2, by the library of that name."""

import struct
from collections.abc import Sequence

from llama_nb.errors import CorruptFileError, MissingDependencyError


class SentencePieces:
    """A SentencePiece vocabulary (Llama 1 and 2), run by the `sentencepiece` library.

    Parameters
    ----------
    model : bytes
        The content of a `tokenizer.model`.
    where : str
        What to call it in an error message.

    Attributes
    ----------
    processor : sentencepiece.SentencePieceProcessor
        The library's, which does the work.

    Raises
    ------
    CorruptFileError
        When the bytes are not a SentencePiece model.
    MissingDependencyError
        When the `sentencepiece` package is not installed.
    """

    def __init__(self, model: bytes, where: str):
        try:
            import sentencepiece
        except ImportError:
            raise MissingDependencyError(
                f"{where} is a SentencePiece model; install 'sentencepiece' to read it."
            ) from None
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise CorruptFileError(
                f"{where} is not a SentencePiece model; fetch it again."
            ) from None
        processor, count = self.processor, self.processor.GetPieceSize()
        self.names = [processor.IdToPiece(i) for i in range(count)]
        self.control = {
            self.names[i]: i
            for i in range(count)
            if processor.IsControl(i) or processor.IsUnknown(i)
        }
        self.pieces = [
            bytes([int(name[3:-1], 16)]) if processor.IsByte(i) else name.replace("▁", " ").encode()
            for i, name in enumerate(self.names)
        ]
        self.bos_id, self.eos_id = processor.bos_id(), processor.eos_id()
        # Whether a text is read as if a space came before it, as Llama 1's and 2's is.
        self.dummy_prefix = "".join(processor.EncodeAsPieces("a")).startswith("▁")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, in which nothing is special."""
        return self.processor.EncodeAsIds(text) if text else []


def sentencepiece_model(
    names: Sequence[str], scores: Sequence[float], types: Sequence[int], add_prefix: bool
) -> bytes:
    """Return the SentencePiece model (a protocol buffer) that a GGUF file's token lists describe.

    Parameters
    ----------
    names, scores, types : sequence
        `tokenizer.ggml.tokens`, `.scores` and `.token_type`.
    add_prefix : bool
        Whether a text is read as if a space came before it.
    """

    def number(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    def flag(field: int, value: int) -> bytes:
        return number(field << 3) + number(value)

    def block(field: int, content: bytes) -> bytes:
        return number(field << 3 | 2) + number(len(content)) + content

    model = bytearray()
    for name, score, kind in zip(names, scores, types, strict=True):
        # Type 4, user-defined, would be recognised in any text; as control it is not.
        kind = 3 if kind == 4 else kind
        floated = number(2 << 3 | 5) + struct.pack("<f", score)
        model += block(1, block(1, name.encode()) + floated + flag(3, kind))
    byte_fallback = 6 in types
    trainer = flag(3, 2) + flag(4, len(names)) + flag(35, byte_fallback)  # model type 2 is BPE
    normalizer = block(1, b"identity") + flag(3, add_prefix) + flag(4, False) + flag(5, True)
    return bytes(model + block(2, trainer) + block(3, normalizer))
