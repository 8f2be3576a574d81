"""The book's machinery: stripping is stable, the cache is keyed, failures say what failed."""

import os
import threading

import nbformat
import pytest

from book import build, notebooks, strip

new = nbformat.v4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "executed"


def write(path, *sources):
    nbformat.write(new.new_notebook(cells=[new.new_code_cell(source) for source in sources]), path)
    return path


def test_normalize_strips_and_is_idempotent():
    code = new.new_code_cell("x", execution_count=3, outputs=[new.new_output("stream", text="1")])
    code.metadata = {"tags": ["keep"], "collapsed": True}
    notebook = new.new_notebook(
        cells=[new.new_markdown_cell("# Title\nA line."), code, new.new_markdown_cell(" ")]
    )
    once = strip.normalize(notebook, "00_x.ipynb")
    again = nbformat.reads(once, as_version=4)
    assert [cell.id for cell in again.cells] == ["cell-0", "cell-1", "cell-2"]
    assert again.cells[0].source == f"# Title\n\n{strip.badge('00_x.ipynb')}\n\nA line."
    assert again.cells[1].source == strip.setup_source()
    assert again.cells[2].outputs == []
    assert again.cells[2].execution_count is None
    assert again.cells[2].metadata == {"tags": ["keep"]}
    assert strip.normalize(again, "00_x.ipynb") == once


def test_normalize_replaces_an_old_badge_and_setup():
    setup = new.new_code_cell("old", metadata={"tags": ["setup"]})
    notebook = new.new_notebook(
        cells=[new.new_markdown_cell(f"# T\n\n{strip.badge('old.ipynb')}\n\nText."), setup]
    )
    cells = nbformat.reads(strip.normalize(notebook, "new.ipynb"), as_version=4).cells
    assert cells[0].source == f"# T\n\n{strip.badge('new.ipynb')}\n\nText."
    assert [cell.source for cell in cells[1:]] == [strip.setup_source()]


@pytest.mark.slow
def test_execute_runs_once_and_keys_by_source(tmp_path, cache):
    ran = tmp_path / "ran"
    path = write(tmp_path / "a.ipynb", f"print(1, file=open({str(ran)!r}, 'a')); 6 * 7")
    first = notebooks.execute(path)
    assert first.cells[0].outputs[0].data["text/plain"] == "42"
    assert first.metadata["llama_nb"]["seconds"] > 0
    assert notebooks.execute(path) == first
    assert ran.read_text() == "1\n"
    assert len(list(cache.iterdir())) == 1
    before = notebooks.key(path)
    write(path, "6 * 8")
    assert notebooks.key(path) != before


@pytest.mark.slow
def test_execute_shows_the_failing_cell(tmp_path, cache):
    path = write(tmp_path / "bad.ipynb", "a = 1", "b = a / 0")
    with pytest.raises(notebooks.NotebookError, match=r"(?s)bad\.ipynb failed.*b = a / 0.*ZeroDiv"):
        notebooks.execute(path)
    assert not cache.exists()


@pytest.mark.skipif(len(notebooks.cores()) < 2, reason="one core can't be shared")
def test_one_that_measures_has_all_cores_and_others_share_them(tmp_path, monkeypatch):
    sources = {"a": "1", "b": "start = time.perf_counter()", "c": "2", "d": "0"}
    paths = [write(tmp_path / f"{name}.ipynb", source) for name, source in sources.items()]
    given, said, whole = {}, [], notebooks.cores()
    both = threading.Barrier(2, timeout=30)  # passed only by two at a time

    def execute(path):
        given[path.stem] = notebooks.cores()
        if path.stem in "ac":
            both.wait()
        if path.stem == "d":
            raise notebooks.NotebookError("it failed")
        return new.new_notebook(metadata={"llama_nb": {"seconds": 0.0}})

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "LANES", 2)
    monkeypatch.setattr(notebooks, "memory", lambda: 100.0)
    done = notebooks.execute_all(paths, said.append)
    assert list(done) == paths and str(done[paths[3]]) == "it failed"
    assert said[0].startswith("[1/4] b.ipynb: 0.0 s") and said[3].startswith("[4/4] ")
    assert sum("d.ipynb: FAILED" in line for line in said) == 1
    assert given["b"] == whole == notebooks.cores()
    if hasattr(os, "sched_setaffinity"):
        assert sorted(given["a"] + given["c"]) == whole


def test_key_depends_on_the_environment(tmp_path, monkeypatch):
    path = write(tmp_path / "a.ipynb", "1")
    monkeypatch.setitem(notebooks.ENVIRONMENT, "XLA_FLAGS", "--a=1")
    before = notebooks.key(path)
    monkeypatch.setitem(notebooks.ENVIRONMENT, "XLA_FLAGS", "--a=2")
    assert notebooks.key(path) != before


def test_streamed_text_is_joined_on_the_page():
    cell = new.new_code_cell("x")
    pieces = (("stdout", "The"), ("stdout", " sky"), ("stderr", "careful"), ("stdout", "!"))
    cell.outputs = [new.new_output("stream", name=name, text=text) for name, text in pieces]
    build.join_streams(cell)
    texts = [(output.name, output.text) for output in cell.outputs]
    assert texts == [("stdout", "The sky"), ("stderr", "careful"), ("stdout", "!")]
