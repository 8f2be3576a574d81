"""What chapters show where there is no TPU compiler was recorded, all of it, and they say so."""

import ast
import json
import re
import sys

import nbformat
import pytest

from book import record
from book.build import ROOT
from llama_nb import answers, results, topology
from llama_nb.answers import TpuCompiler
from llama_nb.errors import InputError, MissingFileError

CHAPTERS = record.chapters()


@pytest.fixture
def nowhere(monkeypatch):
    """Take the compiler away."""
    topology.get.cache_clear()
    monkeypatch.setitem(sys.modules, "libtpu", None)


@pytest.fixture
def here(monkeypatch):
    """Pretend that the compiler is there: `compute` says what it says."""
    monkeypatch.setattr(answers.topology, "get", lambda name: None)
    monkeypatch.setattr(answers, "_versions", lambda: {"jax": "0.9", "libtpu": "1.2"})


@pytest.fixture
def recorded(monkeypatch):
    """Put a recording in the place of the checkout's."""
    found = {"jax": "0.10.2", "libtpu": "0.0.51", "answers": {"bytes": [1, 2], "slow": 3}}
    monkeypatch.setattr(results, "recorded", lambda name: {"compiler/7": found}[name])


def never():
    raise AssertionError("asked")


def test_without_a_compiler_it_says_what_was_recorded(nowhere, recorded, capsys):
    ask = TpuCompiler("7")
    assert "needs the TPU compiler" in capsys.readouterr().out
    assert ask("bytes", never) == [1, 2]
    assert capsys.readouterr().out == "recorded with jax 0.10.2, libtpu 0.0.51:\n"


def test_with_a_compiler_it_asks(here, recorded, capsys):
    ask = TpuCompiler("7")
    assert "libtpu 1.2" in capsys.readouterr().out
    assert ask("bytes", lambda: (3, {4: (5,)})) == [3, {"4": [5]}]  # as if it had been recorded
    assert capsys.readouterr().out == ""
    assert ask("slow", never, slow=True) == 3
    assert "recorded with" in capsys.readouterr().out


def test_recording(here, tmp_path, monkeypatch):
    monkeypatch.setenv(answers.RECORD, str(tmp_path))
    ask = TpuCompiler("7")
    assert ask("one", lambda: (1, 2)) == [1, 2]
    assert ask("two", lambda: 'a "text"\n', slow=True) == 'a "text"\n'
    kept = json.loads((tmp_path / "compiler/7.json").read_text())
    assert kept["answers"] == {"one": [1, 2], "two": 'a "text"\n'}
    assert (kept["jax"], kept["libtpu"]) == ("0.9", "1.2")


def test_a_question_that_was_never_recorded(nowhere, recorded):
    with pytest.raises(InputError, match=r"7 has no answer 'moon'; known: 'bytes', 'slow'\.$"):
        TpuCompiler("7")("moon", never)


def test_a_chapter_that_was_never_recorded(nowhere):
    with pytest.raises(MissingFileError, match="there is no result 'compiler/moon' in"):
        TpuCompiler("moon")("bytes", never)


def questions(path):
    """Yield the chapter that a notebook names, and each question in it."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith("%%"):
            tree = ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.M))
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            for call in calls:
                if getattr(call.func, "id", "") in ("ask", "TpuCompiler"):
                    yield call.func.id, ast.literal_eval(call.args[0])


@pytest.mark.parametrize("number", CHAPTERS)
def test_every_question_of_a_chapter_was_recorded(number):
    asked = list(questions(CHAPTERS[number]))
    assert [name for kind, name in asked if kind == "TpuCompiler"] == [number]
    kept = results.recorded(f"compiler/{number}")
    names = [name for kind, name in asked if kind == "ask"]
    assert sorted(names) == sorted(kept["answers"]), f"run python -m book.record {number}"


def test_no_recording_is_left_over():
    kept = {path.stem for path in (ROOT / results.PLACE / answers.FOLDER).iterdir()}
    assert kept == set(CHAPTERS)


def test_no_recording_says_where_it_was_made():
    for path in (ROOT / "benchmarks/results/compiler").glob("*.json"):
        assert not re.search(r"FileNames|site-packages|ipykernel", path.read_text()), path.name


def test_a_programs_places_are_left_out(tmp_path, monkeypatch):
    if not (ask := answers.TpuCompiler("19")).here:
        pytest.skip("no TPU compiler")
    monkeypatch.setenv(answers.RECORD, str(tmp_path))
    text = 'HloModule a\n\nFileNames\n1 "/home/me/a.py"\n\nStackFrames\n1 {file=1}\n\n\nENTRY'
    ask("program", lambda: text)
    (path,) = tmp_path.rglob("19.json")
    assert json.loads(path.read_text())["answers"] == {"program": "HloModule a\n\n\n\nENTRY"}
