"""A Sphinx extension that makes the bibliography a list to screen readers, too.

docutils gives its entries the role `doc-biblioentry`, which ARIA has withdrawn.
"""

from sphinx.application import Sphinx


def mend(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Replace the role on a page."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the builder."""
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
