"""What a disk says when it can't take more, and how much it can."""

import errno
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def is_full(error: OSError) -> bool:
    """Return whether an error means that there is no room."""
    return error.errno in _FULL


def is_closed(error: OSError) -> bool:
    """Return whether an error means that a place can't be written to, with or without room."""
    return error.errno in _CLOSED


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where a folder is or, not made yet, will be."""
    folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
    return shutil.disk_usage(folder).free
