"""Every notebook runs from top to bottom, once; the site is built from the same run."""

import pytest

from book import build


@pytest.mark.notebook
@pytest.mark.parametrize(
    "path", sorted(build.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebook_runs(path, capsys):
    try:
        notebook = build.execute(path)
    except build.NotebookError as error:
        pytest.fail(str(error), pytrace=False)
    with capsys.disabled():
        print(f" {notebook.metadata['llama_nb']['seconds']:.1f} s ", end="")
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            assert cell.execution_count, cell.source
