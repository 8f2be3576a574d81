"""Models from the Hugging Face Hub: the files that are needed, and no others."""

import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_nb import disk
from llama_nb.errors import DownloadError, InputError

UNGATED = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
_SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"),
    *("chat_template.jinja", "model.safetensors.index.json"),
)
_WEIGHTS = ("*.safetensors",)
_ORIGINAL = ("original/params.json", "original/tokenizer.model", "original/consolidated.*.pth")
_SPARE = 1 << 26  # bytes left free


def download(
    repo: str,
    to: str | Path | None = None,
    *,
    revision: str | None = None,
    original: bool = False,
) -> Path:
    """Fetch a model from the Hub, and return its folder.

    What is there already is not fetched again, so an interrupted download is continued by asking
    again. A token is taken from `HF_TOKEN` or from `hf auth login`.

    Parameters
    ----------
    repo
        `owner/name`.
    to
        A folder for the files; by default the Hub's own cache.
    revision
        A branch, tag or commit; by default the newest.
    original
        Fetch Meta's own files, in the repository's folder `original`, instead of Hugging Face's.

    Raises
    ------
    InputError
        When `repo` is not `owner/name`, does not exist or holds no model that can be read, or the
        disk is too small.
    DownloadError
        When the Hub refuses (a gated repository) or cannot be reached.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(
            f"{repo!r} is not a repository of the Hub; it is written owner/name, for instance "
            f"{UNGATED}."
        )
    with _errors_of(repo, revision):
        import huggingface_hub

        info = huggingface_hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        weights = _ORIGINAL if original else _WEIGHTS
        wanted = weights if original else (*_SETTINGS, *_WEIGHTS)
        files = {name: sizes[name] for name in sizes if _matches(name, wanted)}
        if not any(_matches(name, weights[-1:]) for name in files):
            kind = "original/consolidated.00.pth" if original else "safetensors files"
            raise InputError(f"{repo} has no {kind}; choose a repository that has.")
        # By its name and not by its commit: the cache remembers what the name meant.
        places = {"repo_id": repo, "revision": revision, "allow_patterns": list(files)}
        if to is not None:
            places["local_dir"] = Path(to).expanduser()
        _check_room(files, places, info.sha)
        folder = Path(huggingface_hub.snapshot_download(**places))
    # Without a connection the library may hand back what it has.
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or size not in (None, path.stat().st_size):
            raise DownloadError(f"{repo}: {name} did not arrive; run the same command again.")
    return folder / "original" if original else folder


def cached(repo: str) -> Path | None:
    """Return the folder of a model that was downloaded into the Hub's cache, without the network.

    Parameters
    ----------
    repo
        `owner/name`.

    Returns
    -------
    Path or None
        None when it isn't there. Whether all of its files are is for the reader to see: the
        library itself would miss those that `download` leaves out.
    """
    import huggingface_hub

    for name in ("config.json", "original/params.json"):
        found = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # fnmatch lets * stand for a slash too; no pattern here means files of subfolders.
    return any(
        name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
    )


def _check_room(files: dict[str, int | None], places: dict[str, Any], commit: str) -> None:
    """Compare the bytes that are still to come with those that are free."""
    from huggingface_hub import constants

    local = places.get("local_dir")
    if local is None:
        name = "models--" + places["repo_id"].replace("/", "--")
        local = Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit
    needed = sum(size or 0 for name, size in files.items() if not (local / name).is_file())
    free = disk.free_bytes(local)
    if needed and free < needed + _SPARE:
        raise InputError(
            f"{local} has no room for {places['repo_id']}: {needed:,} bytes are to be fetched and "
            f"{free:,} are free; free some space, or name a folder on another disk with --to."
        )


@contextmanager
def _errors_of(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the library raises into one sentence."""
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        yield
    except (InputError, DownloadError):
        raise
    except errors.GatedRepoError:
        raise DownloadError(
            f"{repo} is gated: accept its licence at {endpoint}/{repo} and set HF_TOKEN to a token "
            f"of that account, or take {UNGATED}, which needs neither."
        ) from None
    except errors.HFValidationError:
        raise InputError(f"{repo!r} cannot be the name of a repository; check it.") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{repo} has no revision {revision!r}; check its name.") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{repo} is not on the Hub, or is private; check its name, or set HF_TOKEN to a token "
            "that may read it."
        ) from None
    except OSError as error:
        if disk.is_full(error):
            raise InputError(
                f"the disk is full ({error.strerror}) while {repo} was fetched; free some space "
                "and run the same command again."
            ) from None
        if disk.is_closed(error):
            raise InputError(f"{error.filename} cannot be written ({error.strerror}).") from None
        raise _unreachable(repo, error) from None
    except Exception as error:
        # Below it are other libraries in every generation: requests, httpx, httpx2, and hf_xet,
        # which raises RuntimeError.
        theirs = type(error).__module__.split(".")[0].startswith(("httpx", "requests"))
        if not theirs and not isinstance(error, RuntimeError):
            raise
        raise _unreachable(repo, error) from None


def _unreachable(repo: str, error: Exception) -> DownloadError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DownloadError(
        f"{repo} could not be fetched ({reason}); check the network and run the same command "
        "again, which continues where this one stopped."
    )
