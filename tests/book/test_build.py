"""The book's machinery: stripping is stable, the cache is keyed, failures say what failed."""

import os
import subprocess
import sys
import threading
import time

import nbformat
import pytest

from book import build, notebooks, strip, turns

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


def test_notebooks_run_side_by_side_and_one_that_fails_is_reported(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{name}.ipynb", "1") for name in "abc"]
    said, both = [], threading.Barrier(2, timeout=30)  # passed only by two at a time

    def execute(path):
        if path.stem == "c":
            raise notebooks.NotebookError("it failed")
        both.wait()
        return new.new_notebook(metadata={"llama_nb": {"seconds": 99.0}})

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "lanes", lambda: 2)
    done = notebooks.execute_all(paths, said.append)
    assert list(done) == paths and str(done[paths[2]]) == "it failed"
    assert sorted(line[:6] for line in said) == ["[1/3] ", "[2/3] ", "[3/3] "]
    assert sorted(line[6:] for line in said) == [
        "a.ipynb: 99.0 s, executed before, unchanged",
        "b.ipynb: 99.0 s, executed before, unchanged",
        "c.ipynb: FAILED",
    ]


def test_an_error_of_ours_is_not_taken_for_the_end(tmp_path, monkeypatch):
    def execute(path):
        raise IndexError("a mistake")

    monkeypatch.setattr(notebooks, "execute", execute)
    with pytest.raises(IndexError, match="a mistake"):
        notebooks.execute_all([write(tmp_path / "a.ipynb", "1")], print)


NOTE = """import time
def note(kind, seconds):
    start = time.monotonic()
    time.sleep(seconds)
    with open({log!r}, "a") as log:
        print(kind, start, time.monotonic(), file=log)"""


@pytest.mark.slow
def test_while_one_cell_measures_no_other_runs(tmp_path, cache, monkeypatch):
    log = tmp_path / "log"
    first = NOTE.format(log=str(log))
    paths = [
        write(tmp_path / "a.ipynb", first, *["note('beside', 0.1)"] * 12),
        write(tmp_path / "b.ipynb", first, *["note('alone', 0.2)  # perf_counter()", "1"] * 3),
    ]
    monkeypatch.setattr(notebooks, "lanes", lambda: 2)
    notebooks.execute_all(paths, print)
    rows = [line.split() for line in log.read_text().splitlines()]
    spans = {
        kind: [tuple(map(float, row[1:])) for row in rows if row[0] == kind] for kind, *_ in rows
    }
    assert len(spans["alone"]) == 3 and len(spans["beside"]) == 12
    for start, end in spans["alone"]:
        assert all(end <= other[0] or other[1] <= start for other in spans["beside"])


INTERRUPTED = """import os, signal, sys, threading
from pathlib import Path
from book import notebooks
notebooks.lanes = lambda: 2
def interrupt():
    while len(list(Path(sys.argv[1]).glob("pid*"))) < 2:
        pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
notebooks.execute_all(sorted(Path(sys.argv[1]).glob("*.ipynb")), print)"""


@pytest.mark.slow
def test_interrupted_it_ends_with_its_kernels(tmp_path, cache):
    for name in "abc":
        sleep = f"import os, time; open({str(tmp_path / 'pid')!r} + str(os.getpid()), 'w').close()"
        write(tmp_path / f"{name}.ipynb", sleep, "time.sleep(300)")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode and done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert not cache.exists()
    pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_cells_that_measure_are_found():
    sources = [
        "import time\nfrom llama_nb.roofline import best_seconds",
        "def timed(f):\n    start = perf_counter()\n    f()\n    return perf_counter() - start",
        "x = 1",
        "%%px\nprint(timed(work))",
        "retimed(x)",
        "rows = list(Run(folder, config))",
    ]
    cells = [new.new_code_cell(source) for source in sources]
    assert turns.that_measure([new.new_markdown_cell("perf_counter()"), *cells]) == {2, 4, 6}


def test_one_that_waits_to_be_alone_is_next():
    waiting, order = turns.Turns(), []
    begun, done = threading.Event(), threading.Event()

    def work(name, alone):
        with waiting.take(alone):
            order.append(name)
            begun.set()
            if name == "first":
                assert done.wait(30)

    def start(name, alone):
        thread = threading.Thread(target=work, args=(name, alone))
        thread.start()
        return thread

    threads = [start("first", False)]
    assert begun.wait(30)
    threads.append(start("alone", True))
    while not waiting._waiting:
        time.sleep(0.001)
    threads.append(start("late", False))
    time.sleep(0.05)
    assert order == ["first"]
    done.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "alone", "late"]


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
