"""What the book adds to Sphinx: sizes of pictures, marks on paragraphs, a text for shared links."""

import base64
import struct
from types import SimpleNamespace

import pytest
from docutils.core import publish_doctree

from book import brand, marks, pictures, roles, social

TEXT = """
Title
=====

|picture|

*Runs on* any CPU, and on GPUs.

**Check it** against NumPy.

**1. Fold.** Write it.

**Bold**, but nothing else.

*Aside.* A remark on that.

- **Check it** in a list is no check.

.. |picture| image:: x.png
"""


def read():
    return publish_doctree(TEXT, settings_overrides={"doctitle_xform": False})


def test_paragraphs_are_marked_by_their_first_words():
    doctree = read()
    marks.mark(None, doctree)
    found = [(p.astext()[:7], p["classes"]) for p in doctree.findall() if p.tagname == "paragraph"]
    assert [pair for pair in found if pair[1]] == [
        ("Runs on", ["marked-hardware"]),
        ("Check i", ["marked-check"]),
        ("1. Fold", ["marked-exercise"]),
        ("A remar", ["marked-aside"]),
    ]


def test_an_aside_stands_in_the_margin_of_the_paragraph_before_it():
    doctree = read()
    marks.mark(None, doctree)
    whole, note = (found for found in doctree.findall() if found.tagname == "container")
    assert (whole["classes"], note["classes"]) == (["with-aside"], ["margin"])
    assert [part.astext() for part in whole] == ["Bold, but nothing else.", "A remark on that."]
    assert whole[1] is note


def test_description_is_the_first_text():
    assert social.description(read()) == "Runs on any CPU, and on GPUs."


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\x80\0\0\x01\xe0", (640, 480)),
        (b"GIF89a\x40\x01\xc8\x00", (320, 200)),
        (b'<svg xmlns="x" width="90pt" height="45.6pt" viewBox="0 0 9 9">', (120, 61)),
        (b'<svg width="118" height="20">', (118, 20)),
        (b'<svg viewBox="0 0 118 20">', None),
    ],
)
def test_size_of_a_picture(start, size, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(start)
    assert pictures.size(path.read_bytes()) == size


def test_pictures_get_sizes_unless_they_have_one(tmp_path):
    (tmp_path / "a.svg").write_text('<svg width="30" height="20">')
    app = SimpleNamespace(srcdir=tmp_path, builder=SimpleNamespace(images={"a.svg": "a1.svg"}))
    body = '<img alt="a" src="../_images/a1.svg" /><img src="../_images/a1.svg" width="9" />'
    context = {"body": body + '<img src="../_images/other.svg" />'}
    pictures.add_sizes(app, "page", "", context, None)
    assert context["body"] == (
        '<img alt="a" src="../_images/a1.svg" width="30" height="20" />'
        '<img src="../_images/a1.svg" width="9" /><img src="../_images/other.svg" />'
    )


def test_a_picture_within_the_page_gets_its_size():
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 576, 152) + b"\xff" * 40
    image = f'<img alt="a" src="{pictures.INLINE}{base64.b64encode(png).decode()}" style="x">'
    context = {"body": image}
    app = SimpleNamespace(srcdir=".", builder=SimpleNamespace(images={}))
    pictures.add_sizes(app, "page", "", context, None)
    assert context["body"] == image[:-1] + ' width="576" height="152">'


def test_committed_mark_is_what_the_script_draws():
    for name in ("logo.svg", "favicon.svg"):
        assert (brand.STATIC / name).read_text(encoding="utf-8") == brand.mark()


def test_screen_readers_get_no_broken_lists_or_nameless_menus():
    signature = '<dt>f(<dl>\n<dd><em class="sig-param">x</em>,</dd>\n</dl>\n)</dt>'
    body = f'<dl class="py">{signature}</dl><div role="doc-biblioentry">a</div>'
    menu = "<details><summary>v</summary></details>"
    context = {"body": body, "generate_toctree_html": lambda kind: menu}
    roles.mend(None, "page", "", context, None)
    assert context["body"] == (
        '<dl class="py"><dt>f(<div class="sig-lines">\n<div class="sig-line">'
        '<em class="sig-param">x</em>,</div>\n</div>\n)</dt></dl><div role="listitem">a</div>'
    )
    assert '<summary aria-label="' in context["generate_toctree_html"]("sidebar")


def test_sliders_have_a_name_and_scrolling_tables_the_focus():
    context = {"body": '<div style=\'overflow-x:auto\'>a</div><input class="anim-slider" name="p">'}
    roles.mend(None, "page", "", context, None)
    assert context["body"] == (
        "<div style='overflow-x:auto' tabindex=\"0\">a</div>"
        '<input class="anim-slider" aria-label="Frame" name="p">'
    )
