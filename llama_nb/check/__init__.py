"""Checks for the book's exercises: your function against the package's, on random inputs.

Each prints one sentence, and returns whether the function is right, so that
`assert check.rms_norm(mine)` fails where it is not. One module per chapter.
"""

from llama_nb.check.start import cache_bytes, top_tokens

__all__ = ["cache_bytes", "top_tokens"]
