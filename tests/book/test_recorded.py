"""Numbers that prose quotes are those in `benchmarks/results`."""

import json
import re

import nbformat
import pytest

from book import build, results


def measured(name):
    """Return the perplexities that a benchmark found."""
    result = json.loads((build.ROOT / f"benchmarks/results/{name}.json").read_text())
    return list(result["perplexity"].values())


def test_chapter_11_quotes_what_int8_costs():
    cells = nbformat.read(build.NOTEBOOKS / "11_int8.ipynb", as_version=4).cells
    (text,) = [cell.source for cell in cells if "benchmarks/int8_perplexity.py" in cell.source]
    wide, *small = measured("int8_perplexity")
    assert re.findall(r"\*\*([\d.]+)\*\*", text) == [f"{value:.3f}" for value in (wide, *small)]
    assert re.findall(r"\((.+%)\)", text) == [f"{value / wide - 1:+.2%}" for value in small]


def test_results_page_shows_the_pod_steps():
    page = results.pod("llama3.1-70b") + results.pod("llama3.1-8b")
    cases = json.loads((build.ROOT / "benchmarks/results/pod_decode.json").read_text())["cases"]
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
    cases = json.loads((build.ROOT / "benchmarks/results/pod_decode.json").read_text())["cases"]
    best = {(8, 2048): 5.75, (8, 8192): 6.6, (16, 2048): 6.4, (64, 2048): 9.0}
    found = {(c["batch"], c["context"]): c for c in cases if c["model"] == "llama3.1-70b"}
    assert {size for size, case in found.items() if case["step_ms"] <= best[size]} == set(best)
    assert found[8, 2048]["argument_gb"] <= 4.95


def test_results_page_shows_training_on_a_cpu():
    page = (build.ROOT / "book/results.md").read_text(encoding="utf-8")
    found = json.loads((build.ROOT / "benchmarks/results/train_cpu.json").read_text())
    tokens = found["batch"] * found["context"]
    shown = results.train_cpu()
    for name, rate in found["tokens_per_s"].items():
        share = found["peak"]["reached"][name]
        assert f"| {rate:,.0f} | {1e3 * tokens / rate:.0f} | {share:.2f} |" in shown, name
    for ratio in found["ratios"].values():
        assert f"**{ratio:.2f} times as fast**" in page


def test_the_atlas_is_whole():
    path = build.ROOT / "benchmarks/results/atlas.json"
    cases = json.loads(path.read_text())["cases"]
    found = {(c["model"], c["topology"].split(":")[0], c["phase"]) for c in cases}
    for model in ("llama3.2-1b", "llama3.1-8b", "llama3.1-70b", "llama3.1-405b"):
        for kind in ("v5e", "v5p", "v6e", "tpu7x"):
            assert {(model, kind, "decode"), (model, kind, "prefill")} <= found
    assert ("llama3.1-8b", "v5e", "train") in found
    asked = {(c["model"], c["topology"], c["context"], c["quant"]) for c in cases if c["fits"]}
    assert ("llama3.1-8b", "v5e:1x1", 8192, "int8") in asked
    assert ("llama3.1-8b", "v6e:1x1", 2048, None) in asked
    assert ("llama3.1-405b", "v5e:8x8", 2048, "int8") in asked


def test_chapter_14_says_what_fine_tuning_cost():
    result = json.loads((build.ROOT / "benchmarks/results/fine_tune.json").read_text())
    base, cases = result["base"], {(c["way"], c["rate"]): c for c in result["cases"]}
    best = {
        way: min((c for c in cases.values() if c["way"] == way), key=lambda c: c["held_loss"])
        for way in ("full", "norms", "lora-8", "lora-2", "lora-32")
    }
    assert all(c["held_loss"] < base["held_loss"] / 10 for c in best.values())
    assert all(c["json"] == len(base["answers"]) - 2 for c in best.values())
    assert best["lora-8"]["rate"] >= 30 * best["full"]["rate"]
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
