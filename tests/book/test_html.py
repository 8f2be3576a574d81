"""The built site as files: links lead somewhere, pictures are described, pages are light."""

import functools
import re
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml

from book import strip
from book.build import SITE

pytestmark = pytest.mark.site

HEAVIEST = 1_500_000  # bytes: a page and its pictures
HERE = "http://here/"
COLAB = "https://colab.research.google.com/"


def local(name, reference):
    """Return the path within the site and the anchor that a page refers to, or None: elsewhere."""
    url, anchor = urldefrag(urljoin(HERE + name, reference))
    if not url.startswith(HERE):
        return None
    return unquote(url.removeprefix(HERE).partition("?")[0]) or "index.html", unquote(anchor)


def test_links_and_anchors_lead_somewhere(page_name, soup):
    broken = []
    for link in soup(page_name).select("a[href], link[href]:not([rel=canonical])"):
        target = local(page_name, link["href"])
        if target is None or link["href"] == "#":
            continue
        path, anchor = target
        found = (SITE / path).is_file()
        if found and anchor and path.endswith(".html"):
            found = anchor in anchors(soup, path)
        if not found:
            broken.append(link["href"])
    assert not broken


@functools.cache
def anchors(soup, path):
    """Return every anchor of a page."""
    return {tag["id"] for tag in soup(path).select("[id]")}


def test_ids_are_unique(page_name, soup):
    ids = [tag["id"] for tag in soup(page_name).select("[id]")]
    assert not {name for name in ids if ids.count(name) > 1}


def test_images_have_alt_text_and_sizes(page_name, soup):
    for image in soup(page_name).select("article img"):
        alt = image.get("alt", "")
        assert alt and "_images/" not in alt, f"no alt text: {image}"
        assert image.get("width") and image.get("height"), f"the page will jump: {image}"


def test_page_is_light(page_name, soup):
    files = {local(page_name, image["src"]) for image in soup(page_name).select("img[src]")}
    parts = {target[0] for target in files if target} | {page_name}
    sizes = {part: (SITE / part).stat().st_size for part in parts}
    assert sum(sizes.values()) < HEAVIEST, sorted(sizes.items(), key=lambda item: -item[1])[:4]


def test_colab_links_are_well_formed(page_name, soup):
    url, branch = strip.repository()
    repository = url.removeprefix("https://github.com/")
    form = re.compile(rf"{COLAB}github/{repository}/blob/{branch}/(notebooks/[\w]+\.ipynb)")
    found = set()
    for link in soup(page_name).select(f'a[href^="{COLAB}"]'):
        match = form.fullmatch(link["href"])
        assert match, link["href"]
        assert (strip.ROOT / match[1]).is_file(), link["href"]
        found.add(match[1])
    if page_name.startswith("notebooks/"):
        assert page_name.replace(".html", ".ipynb") in found


def test_social_card(page_name, soup):
    base = yaml.safe_load((strip.ROOT / "_config.yml").read_text(encoding="utf-8"))["html"][
        "baseurl"
    ]
    meta = {tag["property"]: tag["content"] for tag in soup(page_name).select("meta[property]")}
    assert meta["og:title"]
    assert len(meta["og:description"]) > 20
    assert meta["og:url"] == base + page_name
    assert (SITE / meta["og:image"].removeprefix(base)).read_bytes().startswith(b"\x89PNG")
    assert meta["og:image:alt"]


def test_icon_is_our_own(page_name, soup):
    icons = soup(page_name).select('link[rel~="icon"]')
    assert [local(page_name, icon["href"])[0] for icon in icons] == ["_static/favicon.svg"]
