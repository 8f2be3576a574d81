"""The built site in a browser: it draws, fits, reads well, and asks no other host."""

import pytest

pytestmark = pytest.mark.site

# Some page of each kind, for what the theme does on all of them.
KINDS = ("book/preface.html", "notebooks/02_rmsnorm.html")
FOCUS = """() => {
    const element = document.activeElement, style = getComputedStyle(element);
    const ring = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
    const box = element.getBoundingClientRect();
    return { at: element.outerHTML.slice(0, 120), body: element === document.body,
             shown: ring || style.boxShadow !== 'none', size: box.width * box.height };
}"""
COLOR = "() => getComputedStyle(document.body).backgroundColor"


def test_asks_no_other_host(seen, address):
    own = (address, "data:", "blob:")
    assert not [url for url in seen.requests if not url.startswith(own)]


def test_every_request_is_answered(seen):
    assert not seen.failed


def test_no_error_in_the_console(seen):
    assert not seen.errors


def test_mathematics_is_drawn(seen):
    assert seen.look["math"] == seen.look["drawn"]
    assert not seen.look["wrong"], "TeX has errors"


def test_images_are_shown(seen):
    assert not seen.look["unseen"]


def test_no_note_in_the_margin_covers_another(seen):
    assert not seen.look["covered"]


def test_page_is_no_wider_than_the_screen(seen):
    for width, needed in seen.widths.items():
        assert needed <= width, f"{needed} px wide on a screen of {width}"


def test_code_fits_on_a_laptop(seen):
    assert seen.look["columns"] >= 88


def test_accessible(seen):
    if not seen.violations:
        pytest.skip("axe-playwright-python is not installed")
    found = [f"{theme}: {line}" for theme, lines in seen.violations.items() for line in lines]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", KINDS)
def test_focus_is_visible(name, tab):
    tab.goto(name)
    stops = 0
    for _ in range(30):
        tab.keyboard.press("Tab")
        focus = tab.evaluate(FOCUS)
        if focus["body"] or not focus["size"]:
            continue
        stops += 1
        assert focus["shown"], focus["at"]
    assert stops > 15


@pytest.mark.parametrize("name", KINDS)
def test_dark_mode_switches(name, tab):
    tab.goto(name)
    button = tab.locator(".theme-switch-button:visible").first
    colors = set()
    for _ in range(3):  # light, dark, and what the system prefers
        button.click()
        colors.add(tab.evaluate(COLOR))
    assert len(colors) == 2


def test_search_finds_rmsnorm(tab):
    tab.goto(KINDS[0])
    tab.keyboard.press("Control+k")
    tab.keyboard.type("RMSNorm")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results li a")
    links = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("/notebooks/02_rmsnorm.html" in link for link in links)
