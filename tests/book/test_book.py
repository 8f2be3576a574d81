"""The book's sources are consistent: notebooks, table of contents, badges, alt text."""

import json
import re
import tomllib

import nbformat
import pytest
import yaml

from book import strip

ROOT = strip.ROOT
NOTEBOOKS = sorted(strip.NOTEBOOKS.glob("*.ipynb"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def toc_files(entry=TOC):
    """Yield every file the table of contents names."""
    for name in ("root", "file"):
        if name in entry:
            yield entry[name]
    for name in ("parts", "chapters", "sections"):
        for child in entry.get(name, []):
            yield from toc_files(child)


def pages():
    """Yield the path and the Markdown of every page, and of every notebook's prose."""
    top = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
    for path in [*top, *sorted((ROOT / "book").glob("*.md"))]:
        yield path, path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        yield path, "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@each_notebook
def test_notebook_is_in_its_committed_form(path):
    text = path.read_text(encoding="utf-8")
    assert text == strip.normalize(nbformat.reads(text, as_version=4), path.name), (
        f"run python book/strip.py notebooks/{path.name}"
    )


@each_notebook
def test_notebook_opens_with_title_badge_and_setup(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    title, blank, badge = cells[0].source.splitlines()[:3]
    assert title.startswith("# ")
    assert not blank
    url, branch = strip.repository()
    assert url.startswith("https://github.com/")
    assert badge.endswith(f"{url.partition('.com')[2]}/blob/{branch}/notebooks/{path.name})")
    assert cells[1].cell_type == "code"
    assert cells[1].source == strip.setup_source()


@each_notebook
def test_notebook_uses_markdown_that_colab_shows(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert not re.search(
                r"^(```|:::)\{|(?<![\\\w])\{[\w:-]+\}`", cell.source, re.MULTILINE
            ), cell.source


def test_repository_is_the_same_everywhere():
    url, branch = strip.repository()
    assert f'"git+{url}@{branch}"' in strip.setup_source()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["urls"]["Repository"] == url


def test_toc_names_files_that_exist_and_every_notebook():
    names = list(toc_files())
    assert len(names) == len(set(names))
    for name in names:
        assert any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")), name
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= set(names)


def test_citation_and_changelog_agree_with_the_package():
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(cite)
    assert cite["version"] == project["version"]
    assert cite["license"] == project["license"]
    assert cite["repository-code"] == strip.repository()[0]
    assert cite["title"] == yaml.safe_load((ROOT / "_config.yml").read_text())["title"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project["version"] in changes
    for path in NOTEBOOKS:
        assert path.stem[:2] in changes, f"the changelog lacks {path.stem}"


def test_links_between_pages_point_to_files():
    for path, text in pages():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith(("http", "mailto")):
                assert (path.parent / target).exists(), f"{path} links to {target}"


def test_images_have_alt_text():
    for path, text in pages():
        assert not re.search(r"!\[\s*\]\(", text), path
        for tag in re.findall(r"<img\b[^>]*>", text):
            assert re.search(r'\balt="[^"]+"', tag), f"{path}: {tag}"
        for body in re.findall(r"^```\{(?:image|figure)\}(.*?)^```", text, re.M | re.S):
            assert re.search(r"^:alt: \S", body, re.MULTILINE), f"{path}: {body}"


def test_notebooks_are_small():
    for path in NOTEBOOKS:
        assert path.stat().st_size < 300_000, path.name
        assert json.loads(path.read_text(encoding="utf-8"))["nbformat_minor"] == 5
