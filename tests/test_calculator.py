import json
import re
import shutil

import pytest

from llama_nb import calculator, presets, roofline

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.mark.parametrize("name", calculator.MODELS)
@pytest.mark.parametrize(("batch", "context", "width"), [(1, 128, 2), (64, 8192, 1)])
def test_table_gives_the_floor(name, batch, context, width):
    config, chip = presets.get(name), roofline.CHIPS["H100"]
    row = calculator.table([name])[name]
    step = roofline.decode(batch, context, weights=width, cache=width)
    least = roofline.floor(config, step, chip)
    cache = width * row["cache"] * batch * context
    read = width * row["read"] + batch * width * (row["row"] + row["cache"]) + cache
    assert read / chip.bandwidth == pytest.approx(least.memory)
    flops = batch * (row["flops"] + row["score_flops"] * context)
    assert flops / chip.flops == pytest.approx(least.compute)
    assert width * row["held"] + cache == pytest.approx(least.held)


def test_page_needs_nothing_else():
    page = calculator.html(["tiny"], element="here")
    assert 'id="here"' in page and "ELEMENT" not in page and "DATA" not in page
    assert not re.search(r"https?:|src=|href=|@import", page)
    data = json.loads(re.search(r"const data = (\{.*?\}\}\})", page).group(1))
    assert list(data["models"]) == ["tiny"]
    assert list(data["chips"]) == list(roofline.CHIPS)


@pytest.mark.slow
def test_page_agrees_with_the_floor_in_a_browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.set_content("<meta charset=utf-8>" + calculator.html())
        for field, value in (
            ("model", "llama3.1-70b"),
            ("chip", "TPU v5e"),
            ("w", "1"),
            ("c", "1"),
        ):
            page.locator(f"[data-k={field}]").select_option(value)
        for field, value in (("chips", "4"), ("batch", "3"), ("context", "11")):
            page.locator(f"[data-k={field}]").fill(value)
        text = page.locator("table").inner_text()
        browser.close()
    assert not problems
    # 16 chips of v5e, batch 8, context 2048: roofline.floor says 5.51 ms.
    assert "5.51 ms, bound by memory" in text and "164 kB per token" in text
