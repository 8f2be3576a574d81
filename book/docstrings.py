"""A Sphinx extension: docstrings are written to be read as text, and shown as they were written.

They set tables and formulas apart by indenting them, which reStructuredText takes for quotations
unless two colons announce them; and the star of a shape such as (B, T, *inputs) is no emphasis.
"""

import re

from sphinx.application import Sphinx

_RULE = re.compile(r"-{3,}")
_NAMES = re.compile(r"\w+(, \w+)+")
_STAR = re.compile(r"(?<=[(, ])\*(?=\w)")


def prepare(app: Sphinx, what: str, name: str, thing: object, options: dict, lines: list[str]):
    """Put two colons before indented blocks, and a backslash before stars, where they need it."""
    out, text, above = [], "", True  # the last line of running text; no section has begun
    for line in lines:
        above = above and not _RULE.fullmatch(line)
        indented = above and line.startswith("    ")
        if indented and text and out[-1] == "" and not re.match(r"[-*\d] ?|::", text):
            out += ["::", ""]
            text = "::"
        if not indented:
            text = line or text
            parts = line.split("`")
            line = "`".join([_STAR.sub(r"\*", p) if i % 2 == 0 else p for i, p in enumerate(parts)])
        # Napoleon knows several names of parameters in one line, but not of attributes.
        out += line.split(", ") if "Attributes" in lines and _NAMES.fullmatch(line) else [line]
    lines[:] = out


def setup(app: Sphinx) -> dict[str, bool]:
    """Prepare docstrings before napoleon, which comes at priority 500, reads their sections."""
    app.connect("autodoc-process-docstring", prepare, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
