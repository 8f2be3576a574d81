"""Each chapter ends in exercises: a stub, what it is checked with, and a solution that passes."""

import re
from collections import Counter

import nbformat
import pytest

from book import build
from llama_nb import check

NOTEBOOKS = sorted(build.NOTEBOOKS.glob("*.ipynb"))
TITLE = re.compile(r"^\*\*(\d+)\. .+?[.?!]\*\*", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Solution</summary>\n\n\S.*\n</details>", re.DOTALL)
STUB = re.compile(
    r'def (?P<mine>\w+)\(.*\):\n    """.+"""\n    return None  # your code\n\n\n'
    r"check\.(?P<check>\w+)\((?P=mine)\)"
)


def exercise_cells(path):
    """Return the cells from the heading on, up to the next one."""
    cells = nbformat.read(path, as_version=4).cells
    prose = [cell.source if cell.cell_type == "markdown" else "" for cell in cells]
    (first,) = [i for i, text in enumerate(prose) if re.search(r"^## Exercises$", text, re.M)]
    last = next(i for i, text in enumerate(prose) if i > first and re.search(r"^## ", text, re.M))
    return cells[first:last]


def checks(path):
    """Return the name of each exercise's check; complain of an exercise that lacks a part."""
    cells = exercise_cells(path)
    starts = [
        i for i, c in enumerate(cells) if c.cell_type == "markdown" and TITLE.search(c.source)
    ]
    names = []
    for number, start in enumerate(starts, 1):
        where = f"{path.stem}, exercise {number}"
        task, stub, words, solution = cells[start : start + 4]
        assert TITLE.findall(task.source) == [str(number)], where
        found = STUB.fullmatch(stub.source)
        assert found, f"{where}: no stub\n{stub.source}"
        assert FOLDED.fullmatch(words.source), f"{where}: no folded words\n{words.source}"
        assert solution.cell_type == "code", where
        assert solution.metadata.get("tags") == ["hide-input"], where
        assert "tags" not in stub.metadata, where
        # What is asserted is not the reader's own function, which may be right by then.
        asked = re.findall(r"^assert check\.(\w+)\((.+)\)$", solution.source, re.MULTILINE)
        assert [name for name, _ in asked] == [found["check"]], f"{where}\n{solution.source}"
        assert asked[0][1] != found["mine"], f"{where}: the stub is asserted"
        names.append(found["check"])
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_has_exercises_with_solutions_that_are_run(path):
    assert 2 <= len(checks(path)) <= 4


def test_each_check_belongs_to_one_chapter():
    used = Counter(name for path in NOTEBOOKS for name in checks(path))
    assert used == Counter(check.__all__)
