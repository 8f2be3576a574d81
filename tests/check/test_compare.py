import numpy as np
import pytest

from llama_nb.check.compare import difference, run

A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (None, "returned None"),
        (A[:1], r"shape is \(1, 3\); \(2, 3\) is expected"),
        (A.astype(np.float64), "dtype is float64; float32"),
        (A + np.float32(1), "100% of places"),
        (np.where(A == 5, np.float32(7), A), r"index \(1, 2\): 7 instead of 5"),
        (np.full_like(A, np.nan), "NaN"),
        ("text", "a str"),
        ((A, A), r"shape is \(2, 2, 3\)"),
    ],
)
def test_differences_are_said(got, says):
    import re

    assert re.search(says, difference(got, A))


def test_equal_things_are_equal():
    assert difference(A, A) == ""
    assert difference(A + np.float32(1e-7), A) == ""
    assert difference((A, "x", [1, 2]), (A, "x", [1, 2])) == ""
    assert difference([1, 2], [1, 3]) and difference(["a"], ["b"]) and difference((A,), (A, A))


def test_infinities_in_their_places_are_right():
    masked = np.array([0.0, -np.inf])
    assert difference(masked, masked) == ""
    assert "values differ" in difference(np.array([0.0, 1.0]), masked)


def test_run_says_which_case_and_never_raises(capsys):
    cases = [("one", (1,), 2), ("two", (2,), 3)]
    assert run("plus", lambda x: x + 1, cases)
    assert "right, on 2 cases" in capsys.readouterr().out
    assert not run("plus", lambda x: 2, cases)
    assert "for two, values differ: 2 instead of 3" in capsys.readouterr().out
    assert not run("plus", lambda x: 1 / 0, cases)
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_notebook_shows_the_sentence_alone():
    from IPython.core.interactiveshell import InteractiveShell

    shown = InteractiveShell.instance().display_formatter.format
    verdict = run("plus", lambda x: x + 1, [("one", (1,), 2)])
    assert shown(verdict) == ({}, {}) and shown(int(verdict)) != ({}, {})
