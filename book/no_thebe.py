"""A Sphinx extension that undoes `sphinx_thebe`, which Jupyter Book always loads.

The book does not use it, and it puts a script of another host's, declared twice, on every page.
"""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Disconnect all that `sphinx_thebe` has connected, and drop its style sheet."""
    sheets = app.registry.css_files
    sheets[:] = [sheet for sheet in sheets if sheet[0] != "sphinx-thebe.css"]
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
