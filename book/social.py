"""A Sphinx extension that tells other sites how to show a link to a page: title, text, picture."""

from html import escape

from docutils import nodes
from sphinx.application import Sphinx

CARD = "_static/card.png"
ALT = "Llama 3 in JAX, from one norm to a pod: a causal mask drawn as a grid of four by four."
LONGEST = 200  # characters of a description


def description(doctree: nodes.document) -> str:
    """Return the first paragraph that has text, shortened to whole words."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 20 and not isinstance(paragraph[0], (nodes.image, nodes.reference)):
            return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0] + " …"
    return ""


def add_meta(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Add a page's Open Graph properties to its head."""
    base = app.config.html_baseurl
    if doctree is None or not base:
        return
    text = description(doctree) or ALT
    properties = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": app.env.titles[page].astext(),
        "og:description": text,
        "og:url": f"{base}{page}.html",
        "og:image": base + CARD,
        "og:image:width": "1200",
        "og:image:height": "630",
        "og:image:alt": ALT,
    }
    tags = [f'<meta property="{name}" content="{escape(x)}" />' for name, x in properties.items()]
    tags += [
        f'<meta name="description" content="{escape(text)}" />',
        '<meta name="twitter:card" content="summary_large_image" />',
    ]
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the builder."""
    app.connect("html-page-context", add_meta)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
