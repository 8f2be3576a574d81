"""Numbers that prose quotes are those in `benchmarks/results`."""

import importlib
import json
import re

import nbformat
import pytest

from book import build, results


def result(name):
    """Return what a benchmark has recorded."""
    return json.loads((build.ROOT / f"benchmarks/results/{name}.json").read_text())


def test_chapter_11_quotes_what_int8_costs():
    cells = nbformat.read(build.NOTEBOOKS / "11_int8.ipynb", as_version=4).cells
    (text,) = [cell.source for cell in cells if "benchmarks/int8_perplexity.py" in cell.source]
    wide, *small = result("int8_perplexity")["perplexity"].values()
    assert re.findall(r"\*\*([\d.]+)\*\*", text) == [f"{value:.3f}" for value in (wide, *small)]
    assert re.findall(r"\((.+%)\)", text) == [f"{value / wide - 1:+.2%}" for value in small]


def test_results_page_shows_the_pod_steps():
    page = results.pod("llama3.1-70b") + results.pod("llama3.1-8b")
    cases = result("pod_decode")["cases"]
    assert len(cases) == 6
    for case in cases:
        row = (
            f"| {case['batch']}, {case['context']:,} | {case['step_ms']:.2f} | "
            f"{case['kernel_step_ms']:.2f} | "
            f"{case['argument_gb']:.2f} GB | {case['floor_ms']:.2f} |"
        )
        assert row in page
        if case["public_step_ms"]:
            assert f"{row} {case['public_step_ms']} | {case['public_measured_ms']} |" in page


def test_results_page_includes_every_table():
    page = (build.ROOT / "book/results.md").read_text(encoding="utf-8")
    for name, text in results.parts().items():
        assert f"```{{include}} {name}\n```" in page
        lines = text.splitlines()
        assert len(lines) > 3
        assert len({line.count("|") for line in lines}) == 1, text


def test_pod_steps_meet_what_was_asked_of_them():
    cases = result("pod_decode")["cases"]
    best = {(8, 2048): 5.75, (8, 8192): 6.6, (16, 2048): 6.4, (64, 2048): 9.0}
    found = {(c["batch"], c["context"]): c for c in cases if c["model"] == "llama3.1-70b"}
    assert {size for size, case in found.items() if case["step_ms"] <= best[size]} == set(best)
    assert found[8, 2048]["argument_gb"] <= 4.95


def test_results_page_shows_training_on_a_cpu():
    page = (build.ROOT / "book/results.md").read_text(encoding="utf-8")
    found = result("train_cpu")
    tokens = found["batch"] * found["context"]
    shown = results.train_cpu()
    for name, rate in found["tokens_per_s"].items():
        share = found["peak"]["reached"][name]
        assert f"| {rate:,.0f} | {1e3 * tokens / rate:.0f} | {share:.2f} |" in shown, name
    for ratio in found["ratios"].values():
        assert f"**{ratio:.2f} times as fast**" in page


def test_the_atlas_is_whole():
    cases = result("atlas")["cases"]
    found = {(c["model"], c["topology"].split(":")[0], c["phase"]) for c in cases}
    for model in ("llama3.2-1b", "llama3.1-8b", "llama3.1-70b", "llama3.1-405b"):
        for kind in ("v5e", "v5p", "v6e", "tpu7x"):
            assert {(model, kind, "decode"), (model, kind, "prefill")} <= found
    assert ("llama3.1-8b", "v5e", "train") in found
    asked = {(c["model"], c["topology"], c["context"], c["quant"]) for c in cases if c["fits"]}
    assert ("llama3.1-8b", "v5e:1x1", 8192, "int8") in asked
    assert ("llama3.1-8b", "v6e:1x1", 2048, None) in asked
    assert ("llama3.1-405b", "v5e:8x8", 2048, "int8") in asked


def test_chapter_14_says_what_fine_tuning_cost(monkeypatch):
    tuned = result("fine_tune")
    base, cases = tuned["base"], {(c["way"], c["rate"]): c for c in tuned["cases"]}
    best = {
        way: min((c for c in cases.values() if c["way"] == way), key=lambda c: c["held_loss"])
        for way in ("full", "norms", "lora-8", "lora-2", "lora-32")
    }
    assert all(c["held_loss"] < base["held_loss"] / 10 for c in best.values())
    assert all(c["json"] == len(base["answers"]) - 2 for c in best.values())
    assert best["lora-8"]["rate"] >= 30 * best["full"]["rate"]
    monkeypatch.syspath_prepend(build.ROOT / "benchmarks")
    fine_tune = importlib.import_module("fine_tune")
    asked = fine_tune.from_notebook("HELD_OUT")
    for case in (base, *cases.values()):
        answers = case["answers"]
        assert case["right"] == sum(fine_tune.names(answers[asks], said) for asks, said in asked)
        assert case["json"] == sum(fine_tune.is_json(answers[asks]) for asks, _ in asked)
    # Full fine-tuning at its best rate forgets least; past the best, forgetting grows fast.
    assert best["full"]["bits_per_byte"] == min(c["bits_per_byte"] for c in best.values())
    assert cases["norms", 0.03]["bits_per_byte"] > 2 * base["bits_per_byte"]
    # Two products of three.
    seconds = {way: min(c["step_s"] for c in cases.values() if c["way"] == way) for way in best}
    for way in ("norms", "lora-8"):
        assert seconds[way] / seconds["full"] == pytest.approx(2 / 3, abs=0.07)
    # Eight directions hold two thirds of the change.
    shares = [share[2] for share in cases["full", 1e-4]["energy"].values()]
    assert min(shares) > 0.65


def quoted(stem, pattern):
    """Return the numbers that a chapter's prose has where the pattern fits, once."""
    cells = nbformat.read(build.NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = list(re.finditer(pattern.replace(" ", r"\s"), prose))
    assert len(found) == 1, f"{stem} has {len(found)} times: {pattern}"
    return list(found[0].groups())


def test_chapter_19_quotes_the_case_that_its_table_leaves_out():
    cases = result("pod_decode")["cases"]
    (case,) = [c for c in cases if c["public_step_ms"] and (c["batch"], c["context"]) == (8, 8192)]
    ratio = f"{case['public_step_ms'] / case['public_measured_ms']:.2f}"
    assert quoted("19_compile_for_a_pod", r"8 x 8,192, is left out: ([\d.]+) there") == [ratio]


def test_chapter_24_quotes_the_steps_and_the_atlas():
    atlas = result("atlas")["cases"]
    decode = {(c["model"], c["topology"]): c for c in atlas if c["phase"] == "decode"}
    elsewhere = [
        c["estimated_step_ms"] / c["roofline_ms"]
        for (_, topology), c in decode.items()
        if topology.startswith(("v5p", "tpu7x"))
    ]
    range_ = [f"{edge(elsewhere):.1f}" for edge in (min, max)]
    assert quoted("24_70b_and_405b", r"are ([\d.]+) to ([\d.]+) times the floor") == range_
    huge = decode["llama3.1-405b", "v5e:8x8"]["estimated_step_ms"]
    assert quoted("24_70b_and_405b", r"it has ([\d.]+) ms: see the atlas") == [f"{huge:.2f}"]
    steps = result("pod_decode")["cases"]
    (held,) = [
        c["argument_gb"]
        for c in steps
        if (c["model"], c["batch"], c["context"]) == ("llama3.1-70b", 8, 2048)
    ]
    assert quoted("24_70b_and_405b", r"asks for ([\d.]+) GB on each chip") == [f"{held:.1f}"]
