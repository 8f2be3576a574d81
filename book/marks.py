"""A Sphinx extension that marks exercises, checks, hardware notes and asides.

Notebooks say these in plain Markdown, which Colab shows too: a paragraph that opens with
`**Check it`, `**1. Title.**`, `*Runs on*` or `*Aside.*`. The first three get a class for
`style.css` to show; an aside goes into the margin, beside the paragraph before it.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx

OPENINGS = (
    ("check", nodes.strong, re.compile(r"Check it")),
    ("exercise", nodes.strong, re.compile(r"\d+\. ")),
    ("hardware", nodes.emphasis, re.compile(r"Runs on")),
    ("aside", nodes.emphasis, re.compile(r"Aside\.")),
)


def mark(app: Sphinx, doctree: nodes.document) -> None:
    """Give paragraphs the class that their first words stand for."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if not isinstance(paragraph.parent, nodes.section):
            continue
        first = next((child for child in paragraph if child.astext()), None)
        for name, kind, opening in OPENINGS:
            if isinstance(first, kind) and opening.match(first.astext()):
                paragraph["classes"].append(f"marked-{name}")
                if name == "aside":
                    paragraph.remove(first)
                    paragraph[0] = nodes.Text(paragraph[0].lstrip())
                    to_margin(paragraph)


def to_margin(paragraph: nodes.paragraph) -> None:
    """Put a paragraph into the margin of what stands before it."""
    section, place = paragraph.parent, paragraph.parent.index(paragraph)
    section.remove(paragraph)
    whole = nodes.container("", classes=["with-aside"])
    if place and isinstance(section[place - 1], nodes.paragraph):
        place -= 1
        whole += section.pop(place)
    whole += nodes.container("", paragraph, classes=["margin"])
    section.insert(place, whole)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reader."""
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
