"""From text to batches.

    corpus      documents by name: this machine's Python, known datasets, files
    chats       conversations, of which only the answers are learnt
    bpe         a byte-pair vocabulary of the corpus' own
    tokens      their token ids, and which documents are kept for validation
    packing     documents side by side in rows, each seeing only itself
    batches     shuffled, endless, and resumable in the middle of an epoch

Documents are `datasets`' own; what comes out are NumPy arrays.
"""

from llama_nb.data.batches import Batches, Place
from llama_nb.data.bpe import train_bpe
from llama_nb.data.chats import conversations, tokenize_chats
from llama_nb.data.corpus import documents
from llama_nb.data.packing import Batch, pack, stack
from llama_nb.data.tokens import pieces, split, tokenize

__all__ = [
    "Batch",
    "Batches",
    "Place",
    "conversations",
    "documents",
    "pack",
    "pieces",
    "split",
    "stack",
    "tokenize",
    "tokenize_chats",
    "train_bpe",
]
