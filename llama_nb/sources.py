"""Which 8B weights a reader can have here, and why these."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

from llama_nb import assets, download, loading, presets
from llama_nb import tokenizer_files as files
from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.noise import Noise
from llama_nb.config import LlamaConfig
from llama_nb.errors import DownloadError, InputError
from llama_nb.tokenizer import Tokenizer

VARIABLE = "LLAMA_NB_8B"
GATED = "meta-llama/Llama-3.1-8B-Instruct"
SHAPE = "llama3.1-8b"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes
    ----------
    kind
        "here" (a path, or a name that `loading.locate` knows), "hub" or "random".
    name
        The path or name, the repository, or the preset.
    why
        The choice in one sentence.
    """

    kind: str
    name: str
    why: str


def choose(
    wanted: str | None = None, access: Callable[[str], str] | None = None, token: bool | None = None
) -> Source:
    """Return where to get 8B weights from.

    What is wanted comes first. Else Meta's own where the reader's token opens them, else the
    ungated DeepSeek-R1-Distill-Llama-8B of the same shape; where the Hub can't be reached, what its
    cache has of these two; else random weights.

    Parameters
    ----------
    wanted
        A folder or file, `owner/name` of the Hub, "small" (SmolLM2-135M) or "random"; by default
        what the environment variable `LLAMA_NB_8B` says.
    access
        `hub_access`, or what answers as it does.
    token
        Whether there is a token for the Hub; by default the library is asked.

    Raises
    ------
    InputError
        When what is wanted is nothing of these.
    """
    wanted = os.environ.get(VARIABLE) if wanted is None else wanted
    if wanted:
        return _wanted(wanted)
    access = hub_access if access is None else access
    if _has_token() if token is None else token:
        if (answer := access(GATED)) == "open":
            return Source("hub", GATED, f"Your token opens {GATED}, so these are Meta's weights.")
    else:
        answer = "unknown"
    if answer != "unreachable" and (answer := access(download.UNGATED)) == "open":
        why = f"{download.UNGATED} has Llama 3.1 8B's shape, and anyone may download it."
        return Source("hub", download.UNGATED, why)
    for repo in (GATED, download.UNGATED):
        if download.cached(repo):
            return Source("hub", repo, f"The Hub did not answer, but {repo} is in its cache here.")
    hub = "The Hub refuses" if answer == "refused" else "The Hub can't be reached"
    return Source("random", SHAPE, f"{hub}, so the weights are random: all but the text is real.")


def _wanted(name: str) -> Source:
    said = f"{VARIABLE} is {name!r}"
    if name == "small":
        why = f"{said}: {loading.DEFAULT_MODEL} stands in, a Llama of a sixtieth of the size."
        return Source("here", loading.DEFAULT_MODEL, why)
    if name == "random":
        return Source("random", SHAPE, f"{said}: all but the text is real.")
    if Path(name).expanduser().exists():
        return Source("here", name, f"{said}: weights that are here already.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return Source("hub", name, f"{said}: a repository of the Hub.")
    raise InputError(
        f"{said}, which is no file or folder here; name one, or a repository as owner/name, "
        "or say small or random."
    )


def hub_access(repo: str) -> str:
    """Return "open", "refused" or "unreachable": whether this reader can download a repository."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.auth_check(repo)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError):
        return "refused"
    except Exception:  # the network's, in the words of whichever library carries them
        return "unreachable"
    return "open"


def _has_token() -> bool:
    import huggingface_hub

    return huggingface_hub.get_token() is not None


def open_source(source: Source) -> tuple[Checkpoint, Tokenizer]:
    """Return a source's checkpoint and tokenizer, downloading what isn't here.

    Raises
    ------
    LlamaError
        In one sentence, when the files are bad or can't be fetched.
    """
    if source.kind == "random":
        config = presets.get(source.name)
        return Noise(config), llama3_tokenizer(config)
    if source.kind == "here":
        return loading.open_model(source.name)
    try:
        folder = download.download(source.name)
    except DownloadError:
        folder = download.cached(source.name)
        if folder is None:
            raise
    return loading.open_model(folder)


def llama3_tokenizer(config: LlamaConfig) -> Tokenizer:
    """Return Llama 3's tokenizer, or where it can't be fetched one that knows single bytes."""
    with contextlib.suppress(DownloadError):
        return Tokenizer.from_llama3(assets.fetch(assets.LLAMA3_TOKENIZER))
    plain = config.vocab_size - len(files.llama3_special_names())
    pieces = [bytes([i]) for i in range(256)]
    pieces += [f"[{i}]".encode() for i in range(256, plain)]
    return Tokenizer(**files.llama3(pieces), chat_format="llama3")
