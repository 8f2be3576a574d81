"""What the package raises when its input, not its code, is wrong.

Each carries one sentence: what was wrong, where, and what to do. The command line
prints that sentence and exits with code 2; anything else is a bug and keeps its traceback.
"""


class LlamaError(Exception):
    """Base of every error that the reader can mend."""


class InputError(LlamaError, ValueError):
    """An argument, prompt or option is out of range or contradicts another."""


class MissingFileError(LlamaError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class CorruptFileError(LlamaError, OSError):
    """A file is there but is not what it says: truncated, altered or of another format."""


class DownloadError(LlamaError, ConnectionError):
    """Something could not be fetched."""


class MissingDependencyError(LlamaError, ImportError):
    """An optional package is needed for what was asked."""
