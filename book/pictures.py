"""A Sphinx extension that writes each picture's size on the page, so that text doesn't jump."""

import base64
import re
import struct
from pathlib import Path

from sphinx.application import Sphinx

IMAGE = re.compile(r'<img\b(?![^>]*\swidth=)[^>]*?\ssrc="([^"]+)"[^>]*?(?=\s*/?>)')
INLINE = "data:image/png;base64,"
PIXELS = {"pt": 4 / 3, "px": 1, "": 1}


def size(start: bytes) -> tuple[int, int] | None:
    """Return a picture's width and height in pixels, by its first bytes; None if they don't say."""
    if start.startswith(b"\x89PNG"):
        return struct.unpack(">II", start[16:24])
    if start.startswith(b"GIF8"):
        return struct.unpack("<HH", start[6:10])
    sides = [
        re.search(rf'<svg[^>]*?\s{side}="([\d.]+)(pt|px|)"', start.decode(errors="ignore"))
        for side in ("width", "height")
    ]
    if not all(sides):
        return None
    width, height = (round(float(side[1]) * PIXELS[side[2]]) for side in sides)
    return width, height


def add_sizes(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Give the pictures of a page their size."""
    sources = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def sized(match: re.Match) -> str:
        found, name = None, match[1].rpartition("/")[2]
        if match[1].startswith(INLINE):  # an animation's first picture
            found = size(base64.b64decode(match[1].removeprefix(INLINE)[:40]))
        elif ":" not in match[1] and name in sources:
            found = size(sources[name].read_bytes()[:2000])
        return match[0] + (f' width="{found[0]}" height="{found[1]}"' if found else "")

    if "body" in context:
        context["body"] = IMAGE.sub(sized, context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the builder."""
    app.connect("html-page-context", add_sizes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
