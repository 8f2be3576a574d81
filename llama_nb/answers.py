"""What the TPU compiler says in a chapter, or what it said before, where there is none.

A chapter asks by name: `ask = TpuCompiler("19")`, and then `ask("bytes", compute)`. The answers in
`benchmarks/results/compiler` are kept by `python -m book.record`, which runs the chapters.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llama_nb import results, topology
from llama_nb.errors import InputError

FOLDER = "compiler"  # of `results.PLACE`
RECORD = "LLAMA_NB_RECORD"  # names a folder: write all answers there
# In a program's text as JSON: the files and lines of whoever compiled it.
_PLACES = re.compile(r"FileNames\\n.*?StackFrames\\n(?:\d+ \{[^}]*\}\\n)*")


class TpuCompiler:
    """Questions to the TPU compiler, with recorded answers for machines without it.

    Parameters
    ----------
    chapter
        Names the recording, such as "19".
    """

    def __init__(self, chapter: str):
        self._name = f"{FOLDER}/{chapter}"
        self._recorded: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        try:
            topology.get("v5e:1x1")
        except InputError as error:
            self.here = False
            print(error)
        else:
            self.here = True
            print(f"the TPU compiler is here, libtpu {_versions()['libtpu']}")

    def __call__(self, question: str, compute: Callable[[], Any], *, slow: bool = False) -> Any:
        """Return what `compute` returns, or without a compiler what it returned when recorded.

        Parameters
        ----------
        question
            Names the answer.
        compute
            Asks the compiler. Tuples become lists, as in JSON, whether recorded or not.
        slow
            Longer than a reader waits: computed for the recording only.

        Raises
        ------
        InputError
            When no answer of that name was recorded.
        """
        recording = os.environ.get(RECORD)
        if not self.here or (slow and not recording):
            return self._recall(question)
        answer = json.loads(json.dumps(compute()))
        if recording:
            self._new[question] = answer
            self._write(Path(recording))
        return answer

    def _recall(self, question: str) -> Any:
        self._recorded = recorded = self._recorded or results.recorded(self._name)
        answers = recorded["answers"]
        if question not in answers:
            known = ", ".join(map(repr, answers))
            raise InputError(f"{self._name} has no answer {question!r}; known: {known}.")
        print(f"recorded with jax {recorded['jax']}, libtpu {recorded['libtpu']}:")
        return answers[question]

    def _write(self, folder: Path) -> None:
        path = folder / f"{self._name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "".join(f"{json.dumps(name)}: {json.dumps(v)},\n" for name, v in _versions().items())
        rows = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in self._new.items()]
        text = "{\n" + head + '"answers": {\n' + ",\n".join(rows) + "\n}}\n"  # an answer a line
        path.write_text(_PLACES.sub("", text), encoding="utf-8")


def _versions() -> dict[str, str]:
    import libtpu

    return {"jax": jax.__version__, "libtpu": libtpu.__version__}
