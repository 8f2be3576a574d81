"""A Sphinx extension: a term of the glossary is linked as a heading is, `glossary.md#kv-cache`.

So one plain Markdown link works on the site, on Colab and on GitHub, where `{term}` is raw text.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx


def slug(term: str) -> str:
    """Return what stands behind the # of a link to a term."""
    return re.sub(r"[^\w]+", "-", term.lower())


def tell(app: Sphinx, document: nodes.document) -> None:
    """Tell the Markdown parser of the terms on a page, in the form in which it keeps headings."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for term in document.findall(nodes.term):
        if term["ids"]:
            slugs[slug(term.astext())] = (term.line, term["ids"][0], term.astext())


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen for pages that were read."""
    app.connect("doctree-read", tell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
