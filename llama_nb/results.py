"""What the benchmarks have measured, for the chapters that show it."""

import importlib.metadata
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from llama_nb.errors import DownloadError, MissingFileError

PLACE = Path("benchmarks/results")
BRANCH = "main"


def recorded(name: str) -> dict[str, Any]:
    """Return what a benchmark has written into `benchmarks/results`.

    It is read from the checkout that the package or the notebook lies in. Where there is none, as
    on Colab, it is read from the repository that the package names.

    Parameters
    ----------
    name
        Of the file, without ".json".

    Raises
    ------
    MissingFileError
        When there is no result of that name.
    DownloadError
        When the repository cannot be reached.
    """
    for checkout in (Path(__file__).resolve().parents[1], Path.cwd().parent):
        folder = checkout / PLACE
        if folder.is_dir():
            return _read(folder, name)
    return _fetched(name)


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.json"))) or "none"
        raise MissingFileError(f"there is no result {name!r} in {folder}; known: {known}.")
    return json.loads(path.read_text(encoding="utf-8"))


def _fetched(name: str) -> dict[str, Any]:
    links = importlib.metadata.metadata("llama_nb").get_all("Project-URL") or []
    (home,) = (link.partition(", ")[2] for link in links if link.startswith("Repository"))
    raw = home.replace("github.com", "raw.githubusercontent.com")
    url = f"{raw}/{BRANCH}/{PLACE.as_posix()}/{name}.json"
    try:
        with urllib.request.urlopen(url, timeout=30) as page:
            return json.load(page)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise MissingFileError(f"there is no result {name!r} at {url}.") from error
        raise DownloadError(f"{url} could not be read: {error}.") from error
    except OSError as error:
        raise DownloadError(f"{url} could not be reached: {error}. Is there a network?") from error
