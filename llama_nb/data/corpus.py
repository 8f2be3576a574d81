"""Text to learn from, by name: this machine's own Python, known datasets, or your files."""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_nb.errors import DownloadError, InputError, MissingFileError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

OWN = ("python-docs", "python-source")
# Names for what is on the Hugging Face Hub: repository, configuration.
KNOWN = {
    "tinystories": ("roneneldan/TinyStories", None),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
# How `datasets` calls the readers of these files.
_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_TEXTS = (".txt", ".md", ".rst", ".py")


def documents(
    source: str | Path, *, column: str = "text", split: str = "train", streaming: bool = False
) -> "Dataset | IterableDataset":
    """Return documents, one per row, in a column "text".

    Parameters
    ----------
    source
        "python-docs": the language reference that comes with Python and the docstrings of its
        library; "python-source": that library's code; "tinystories" or "wikitext"; a text file
        (one document), a folder of such files, a .jsonl, .csv or .parquet file; or a dataset on
        the Hugging Face Hub, as owner/name or owner/name:configuration.
    column
        Where files and datasets have their text.
    split
        Of a dataset on the Hub.
    streaming
        Read as it is needed, for what is larger than memory and disk.

    Raises
    ------
    LlamaError
        In one sentence, when there is no such source, no such column or no text, or when the Hub
        can't be reached.
    """
    import datasets

    name, path = str(source), Path(source)
    if name in OWN:
        version = sys.version.partition(" ")[0]  # Other versions have other files.
        found = datasets.Dataset.from_generator(
            _python, gen_kwargs={"kind": name, "version": version}
        )
        found = found.to_iterable_dataset() if streaming else found
    elif path.is_dir():
        files = [str(f) for f in sorted(path.rglob("*")) if f.is_file() and f.suffix in _TEXTS]
        if not files:
            raise InputError(f"{path} holds no text: no file ends in {', '.join(_TEXTS)}.")
        found = _read("text", files, streaming, sample_by="document")
    elif path.is_file() and path.suffix not in _READERS:
        found = _read("text", [str(path)], streaming, sample_by="document")
    else:
        found = rows(source, split, streaming)
    found = only(found, column if name not in OWN else "text", "text", name).filter(_has_text)
    if next(iter(found), None) is None:
        raise InputError(f"{name} has no text to learn from.")
    return found


def rows(source: str | Path, split: str, streaming: bool) -> Any:
    """Return what a .json, .jsonl, .csv or .parquet file or a dataset on the Hub has, as it is."""
    path = Path(source)
    if path.is_file():
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise InputError(f"{path} is none of: {', '.join(_READERS)}.")
        return _read(reader, [str(path)], streaming)
    if path.suffix in (*_READERS, *_TEXTS):
        raise MissingFileError(f"there is no file {path}.")
    return _hub(str(source), split, streaming)


def only(found: Any, column: str, name: str, source: str) -> Any:
    """Keep one column, under another name."""
    columns = found.column_names or list(next(iter(found), {}))
    if column not in columns:
        raise InputError(f"{source} has no column {column!r}; it has: {', '.join(columns)}.")
    found = found.remove_columns([other for other in columns if other != column])
    return found if column == name else found.rename_column(column, name)


def _python(kind: str, version: str) -> Iterator[dict[str, str]]:
    """Yield what comes with Python: its reference and docstrings, or its library's code."""
    library = Path(sysconfig.get_path("stdlib"))
    apart = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    files = [
        file
        for file in sorted(library.rglob("*.py"))
        if not apart & set(file.relative_to(library).parts[:-1])
        and file.parent.name != "pydoc_data"
    ]
    if kind == "python-docs":
        from pydoc_data.topics import topics

        yield from ({"text": text.strip()} for _, text in sorted(topics.items()))
    for file in files:
        try:
            code = file.read_text(encoding="utf-8")
            text = code if kind == "python-source" else "\n\n".join(_docstrings(code))
        except (SyntaxError, UnicodeDecodeError):
            continue  # Some are there to be wrong.
        if text.strip():
            yield {"text": text.strip()}


def _docstrings(code: str) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def _read(reader: str, files: list[str], streaming: bool, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            reader, data_files=files, split="train", streaming=streaming, **options
        )
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise InputError(f"{files[0]} can't be read as {reader}: {reason}") from None
    except StopIteration:
        raise InputError(f"{files[0]} has nothing in it.") from None


def _hub(name: str, split: str, streaming: bool) -> Any:
    import datasets

    repository, _, configuration = name.partition(":")
    if name in KNOWN:
        repository, configuration = KNOWN[name]
    elif repository.count("/") != 1:
        raise InputError(
            f"there is no file, folder or dataset {name!r}; known: {', '.join((*OWN, *KNOWN))}, or "
            "owner/name for one on the Hugging Face Hub."
        )
    try:
        return datasets.load_dataset(
            repository, configuration or None, split=split, streaming=streaming
        )
    except ValueError as error:  # An unknown split or configuration.
        raise InputError(f"{repository}: {str(error).partition(chr(10))[0]}") from None
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise DownloadError(
            f"{repository} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); check the name and the connection, or use python-docs, "
            "which is on every machine."
        ) from None


def _has_text(row: dict[str, Any]) -> bool:
    return isinstance(row["text"], str) and bool(row["text"].strip())
