"""A Sphinx extension that marks exercises, checks and hardware notes, for `style.css` to show.

Notebooks say these in plain Markdown, which Colab shows too: a paragraph that opens with
`**Check it`, `**1. Title.**` or `*Runs on*`.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx

OPENINGS = (
    ("check", nodes.strong, re.compile(r"Check it")),
    ("exercise", nodes.strong, re.compile(r"\d+\. ")),
    ("hardware", nodes.emphasis, re.compile(r"Runs on")),
)


def mark(app: Sphinx, doctree: nodes.document) -> None:
    """Give paragraphs the class that their first words stand for."""
    for paragraph in doctree.findall(nodes.paragraph):
        if not isinstance(paragraph.parent, nodes.section):
            continue
        first = next((child for child in paragraph if child.astext()), None)
        for name, kind, opening in OPENINGS:
            if isinstance(first, kind) and opening.match(first.astext()):
                paragraph["classes"].append(f"marked-{name}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reader."""
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
