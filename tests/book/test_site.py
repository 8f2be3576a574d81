"""The built site, read in a browser: no other host, math drawn, nothing wider than the screen."""

import functools
import http.server
import shutil
import threading

import pytest

from book.build import SITE

pytestmark = pytest.mark.site

WIDTHS = (390, 1280)  # a phone, a laptop
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What a page says of itself once it is drawn.
LOOK = """() => ({
    width: document.documentElement.scrollWidth,
    math: document.querySelectorAll('.math').length,
    drawn: document.querySelectorAll('.math mjx-container').length,
    wrong: [...document.querySelectorAll('mjx-merror')].map(e => e.title),
    images: [...document.querySelectorAll('article img')].map(e => [e.alt, e.src, e.naturalWidth]),
})"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(QuietHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


def pages():
    """Return the paths of the site's pages, or none where it is not built."""
    found = [*SITE.glob("book/*.html"), *SITE.glob("notebooks/*.html"), *SITE.glob("index.html")]
    names = sorted(path.relative_to(SITE).as_posix() for path in found)
    return names or [pytest.param("", marks=pytest.mark.skip("no site: run make book"))]


@pytest.mark.parametrize("name", pages())
def test_page(name, address, browser):
    for width in WIDTHS:
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests, errors = [], []
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.on("pageerror", lambda error, seen=errors: seen.append(str(error)))
        page.goto(address + name, wait_until="networkidle")
        page.wait_for_function(
            "() => !document.querySelector('.math') || document.querySelector('mjx-container')"
        )
        look = page.evaluate(LOOK)
        page.close()
        elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
        assert not elsewhere, "the page asks other hosts"
        assert not errors, "a script failed"
        assert look["width"] <= width, f"wider than {width} px"
        assert look["math"] == look["drawn"], "math is not drawn"
        assert not look["wrong"], "TeX has errors"
        for alt, source, natural in look["images"]:
            assert alt and "_images/" not in alt, f"{source} has no alt text"
            assert natural, f"{source} is not shown"
