"""A Sphinx extension that makes lists and menus what they are to screen readers, too.

- docutils gives entries of the bibliography the role `doc-biblioentry`, which ARIA has withdrawn.
- Sphinx writes a signature over several lines as a list of definitions without terms.
- The theme folds menus behind a triangle that has no name.
- Matplotlib's animations have a slider without a name.
- A table that scrolls within a chapter can't be reached by keyboard.
"""

import re

from sphinx.application import Sphinx

LINES = re.compile(r'<dl>(\s*<dd><em class="sig-param.*?</dd>\s*)</dl>', re.DOTALL)
SCROLLS = re.compile(r"""<div style=(['"])overflow-x:auto\1""")
MENU = '<summary aria-label="Pages of this chapter">'


def lines(match: re.Match) -> str:
    """Return a signature's lines as plain blocks."""
    inner = match[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f'<div class="sig-lines">{inner}</div>'


def mend(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Mend a page's text and its menu."""
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        body = body.replace('class="anim-slider"', 'class="anim-slider" aria-label="Frame"')
        body = SCROLLS.sub(r'\g<0> tabindex="0"', body)
        context["body"] = LINES.sub(lines, body)
    if menu := context.get("generate_toctree_html"):
        context["generate_toctree_html"] = lambda *args, **options: (
            str(found).replace("<summary>", MENU) if (found := menu(*args, **options)) else found
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the builder, after the theme."""
    app.connect("html-page-context", mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
