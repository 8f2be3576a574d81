"""Every term says what it is and which chapter builds it; every link to a term finds it."""

import re

import nbformat
import pytest

from book import build, terms

TEXT = (build.ROOT / "book/glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^(\S.*)\n((?:  \S.*\n)+)", TEXT.partition("{glossary}\n")[2], re.MULTILINE)
LINK = re.compile(r"\(\S*glossary\.md#([^)]+)\)")


def links():
    """Yield where a link to the glossary is, and to what."""
    for path in sorted(build.NOTEBOOKS.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                yield from ((path.stem, target) for target in LINK.findall(cell.source))
    for path in sorted((build.ROOT / "book").glob("*.md")):
        found = LINK.findall(path.read_text(encoding="utf-8"))
        yield from ((path.stem, target) for target in found)


def test_terms_are_many_sorted_and_different():
    names = [term.lower() for term, _ in ENTRIES]
    assert len(names) >= 50
    assert names == sorted(names)
    assert len({terms.slug(name) for name in names}) == len(names)


@pytest.mark.parametrize(("term", "body"), ENTRIES, ids=[term for term, _ in ENTRIES])
def test_term_has_a_definition_and_a_chapter(term, body):
    said, number, name = re.fullmatch(
        r"\s*(.+?) \[Chapter (\d\d)\]\(\.\./notebooks/(\S+)\)\.\s*", body, re.DOTALL
    ).groups()
    assert 1 <= len(re.findall(r"[.](?:\s|$)", said)) <= 2
    assert len(said) > 20
    assert name.startswith(number)
    assert (build.NOTEBOOKS / name).is_file()


def test_links_lead_to_terms():
    found = list(links())
    assert len(found) >= 25
    assert {target for _, target in found} <= {terms.slug(term) for term, _ in ENTRIES}
    assert len(found) == len(set(found)), "a page links a term once"


def test_every_term_is_linked_no_later_than_where_it_is_built():
    first = {}
    for page, target in links():
        first[target] = min(first.get(target, "99"), page[:2] if page[0].isdigit() else "")
    late = {}
    for term, body in ENTRIES:
        builder = re.search(r"\[Chapter (\d\d)\]", body)[1]
        if (found := first.get(terms.slug(term), "nowhere")) > builder:
            late[term] = f"linked first in {found}, built in {builder}"
    assert not late
