"""Record what the TPU compiler says in the chapters: `python -m book.record [19 20 ...]`.

A chapter runs from top to bottom, and only then are its answers replaced: all of them.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from book import notebooks
from book.strip import NOTEBOOKS, ROOT
from llama_nb.answers import FOLDER, RECORD
from llama_nb.results import PLACE

KEPT = ROOT / PLACE / FOLDER


def chapters() -> dict[str, Path]:
    """Return the notebooks that ask the compiler, by number."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    asking = [path for path in paths if "TpuCompiler(" in path.read_text(encoding="utf-8")]
    return {path.name.partition("_")[0]: path for path in asking}


def record(number: str, path: Path) -> None:
    """Run a chapter, and then replace its answers."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLAMA_NB_CACHE"] = folder  # this process's: what was executed before is no use
        notebooks.ENVIRONMENT[RECORD] = folder
        notebooks.execute(path)
        new = (Path(folder) / FOLDER / f"{number}.json").read_bytes()
    KEPT.mkdir(exist_ok=True)
    draft = KEPT / f"{number}.{os.getpid()}"
    draft.write_bytes(new)
    draft.replace(KEPT / f"{number}.json")


def main() -> int:
    """Record the chapters that are named, or all."""
    known = chapters()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", metavar="NUMBER", help=f"of {', '.join(known)}")
    asked = parser.parse_args().chapters or list(known)
    for number in asked:
        if number not in known:
            parser.error(f"chapter {number} asks no compiler")
    for number in asked:
        print(f"recording {known[number].name} ...", flush=True)
        record(number, known[number])
    return 0


if __name__ == "__main__":
    sys.exit(main())
