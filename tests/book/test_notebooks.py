"""Every notebook runs from top to bottom, once; the site is built from the same run."""

import pytest

from book import notebooks
from book.strip import NOTEBOOKS


@pytest.fixture(scope="module")
def executed(request):
    """Return the notebooks of the chosen tests, executed, or what went wrong."""
    items = (item for item in request.session.items if item.path == request.path)
    chosen = [item.callspec.params["path"] for item in items]
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        return notebooks.execute_all(chosen, lambda line: print(line, flush=True))


@pytest.mark.notebook
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, executed):
    notebook = executed[path]
    if isinstance(notebook, notebooks.NotebookError):
        pytest.fail(str(notebook), pytrace=False)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            assert cell.execution_count, cell.source
