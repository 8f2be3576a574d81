"""The built site, served and opened in a browser; each page is looked at once, for all tests."""

import functools
import http.server
import shutil
import threading
from dataclasses import dataclass, field

import pytest
from bs4 import BeautifulSoup

from book.build import SITE

LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
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
STILL = "*, ::before, ::after { transition: none !important; animation: none !important }"
READY = """async () => {
    if (document.querySelector('.math') && window.MathJax) await MathJax.startup.promise;
    await document.fonts.ready;
}"""
# What a page says of itself once it is drawn.
LOOK = """() => { const columns = pre => {
    const style = getComputedStyle(pre), pen = document.createElement('canvas').getContext('2d');
    pen.font = `${style.fontSize} ${style.fontFamily}`;
    const room = pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return room > 0 ? Math.floor(room / pen.measureText('0').width) : 999;  // hidden: no room
}; const notes = [...document.querySelectorAll('.bd-article .margin')]
    .map(note => note.getBoundingClientRect());
const cover = (a, b) => a.top < b.bottom && b.top < a.bottom
    && a.left < b.right && b.left < a.right;
return {
    math: document.querySelectorAll('.math').length,
    drawn: document.querySelectorAll('.math mjx-container').length,
    wrong: [...document.querySelectorAll('mjx-merror')].map(e => e.title),
    unseen: [...document.images].filter(e => !e.naturalWidth).map(e => e.src),
    covered: notes.filter((a, i) => notes.slice(i + 1).some(b => cover(a, b))).length,
    columns: Math.min(...[...document.querySelectorAll('div.cell_input pre')].map(columns)),
}}"""
# How wide a page is; notes in the margin count, which the theme would cut off.
WIDTH = """() => Math.max(document.documentElement.scrollWidth,
    ...[...document.querySelectorAll('.bd-article :is(.margin, .sidenote)')]
        .map(note => Math.ceil(note.getBoundingClientRect().right)))"""
# What axe looks for: WCAG 2.1 A and AA. A formula's glyphs have the colour of the text around them.
RULES = {
    "light": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    # What another palette or a narrower window can change.
    "dark": ["color-contrast", "link-in-text-block", "scrollable-region-focusable"],
}
OPTIONS = {
    "resultTypes": ["violations"],
    "preload": False,  # it would ask for style sheets again, at wrong addresses
}
CONTEXT = {"exclude": [["mjx-container"]]}
# Of thousands of coloured words in code and outputs, axe needs a few of each kind.
THIN_OUT = """() => { const met = {};
for (const word of document.querySelectorAll('pre span:not(:has(*))')) {
    const ground = word.closest('pre').parentElement.parentElement.className;
    const kind = [word.className, word.style.cssText, ground].join();
    met[kind] = (met[kind] ?? 0) + 1;
    if (met[kind] > 3) word.replaceWith(word.textContent);
}}"""
UNFOLD = "() => document.querySelectorAll('details').forEach(folded => { folded.open = true })"


@dataclass
class Seen:
    """What a browser saw on one page."""

    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    look: dict = field(default_factory=dict)
    widths: dict[int, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Say nothing."""


def site_pages():
    """Return the paths of the site's pages, or none where it is not built."""
    found = [*SITE.glob("book/*.html"), *SITE.glob("notebooks/*.html")]
    names = sorted(path.relative_to(SITE).as_posix() for path in found)
    return names or [pytest.param("", marks=pytest.mark.skip("no site: run make book"))]


def pytest_generate_tests(metafunc):
    """Give a test that asks for `page_name` every page."""
    if "page_name" in metafunc.fixturenames:
        metafunc.parametrize("page_name", site_pages(), scope="session")


@pytest.fixture(scope="session")
def soup():
    """Return a function that reads a page of the site."""
    return functools.cache(
        lambda name: BeautifulSoup((SITE / name).read_text(encoding="utf-8"), "html.parser")
    )


@pytest.fixture(scope="session")
def address():
    handler = functools.partial(QuietHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(address, chromium):
    """Return an empty tab of a laptop's size, in a fresh profile whose addresses are the site's."""
    context = chromium.new_context(base_url=address, viewport=LAPTOP, color_scheme="light")
    yield context.new_page()
    context.close()


def describe(violation):
    """Return one line on what axe objects to, with the first places."""
    places = [f"{node['target'][-1]} ({node['html'][:100]})" for node in violation["nodes"]]
    detail = violation["nodes"][0]["failureSummary"].splitlines()[-1].strip()
    return f"{violation['id']}, {len(places)} times, as in {'; '.join(places[:3])}: {detail}"


def visit(page, name, axe):
    """Open a page on a laptop in light mode, then make it dark, then a phone's."""
    seen = Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("requestfailed", lambda request: seen.failed.append(request.url))
    page.on(
        "response",
        lambda answer: seen.failed.append(answer.url) if answer.status >= 400 else None,
    )
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda said: seen.errors.append(said.text) if said.type == "error" else None,
    )
    page.goto(name)
    page.add_style_tag(content=STILL)
    page.evaluate(READY)
    page.evaluate(UNFOLD)
    seen.look = page.evaluate(LOOK)
    page.evaluate(THIN_OUT)
    for theme, size in (("light", LAPTOP), ("dark", PHONE)):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        if page.viewport_size != size:
            page.set_viewport_size(size)
            page.wait_for_timeout(350)  # the theme looks for what scrolls a while after a resize
        seen.widths[size["width"]] = page.evaluate(WIDTH)
        if axe:
            options = {**OPTIONS, "runOnly": RULES[theme]}
            found = axe.run(page, context=CONTEXT, options=options).response["violations"]
            seen.violations[theme] = [describe(violation) for violation in found]
    return seen


@pytest.fixture(scope="session")
def seen(page_name, address, chromium):
    """Return what the browser saw on the page, which is opened once for all tests."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        axe = None
    else:
        axe = Axe()
    context = chromium.new_context(base_url=address, viewport=LAPTOP, color_scheme="light")
    yield visit(context.new_page(), page_name, axe)
    context.close()
