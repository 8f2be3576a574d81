"""What a disk says when it can't take more, and how much it can."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llama_nb.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def is_full(error: Exception) -> bool:
    """Return whether an error means that there is no room; libraries say so in words of theirs."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(os.strerror(code) in str(error) for code in _FULL)


@contextlib.contextmanager
def room(sentence: str) -> Iterator[None]:
    """Raise an `InputError` that says a sentence in place of any error that means a full disk."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not is_full(error):
            raise
        raise InputError(sentence) from None


def is_closed(error: OSError) -> bool:
    """Return whether an error means that a place can't be written to, with or without room."""
    return error.errno in _CLOSED


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where a folder is or, not made yet, will be."""
    folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
    return shutil.disk_usage(folder).free
