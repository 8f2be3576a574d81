"""Chapter 23 on the machines and with the weights that the site's build does not have.

Its cells run here with a model of Llama 3's vocabulary and little else in place of 8B.
"""

import dataclasses
import shutil

import matplotlib
import nbformat
import pytest

from book import build
from llama_nb import assets, placement, presets, sources
from llama_nb.errors import InputError
from llama_nb.placement import Machine

matplotlib.use("agg")
import matplotlib.pyplot as plt

pytestmark = pytest.mark.slow

LITTLE = dataclasses.replace(presets.get("tiny"), vocab_size=128_256, context=4096)
LARGE = dataclasses.replace(LITTLE, ffn_dim=2000, num_layers=400)  # 170 MB in int8
ABOUT_8B = 'machines["TPU v5e-1"].memory'  # the one cell whose assertion is about 8B itself


@pytest.fixture
def chapter(monkeypatch, capsys):
    """Return a function that runs the chapter and returns its names and what it printed."""
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.chdir(build.NOTEBOOKS)

    def run(weights, machine=None, eight=LITTLE):
        monkeypatch.setenv(sources.VARIABLE, str(weights))
        monkeypatch.setitem(presets.PRESETS, "llama3.1-8b", eight)
        if machine is not None:
            monkeypatch.setattr(placement, "look", lambda: machine)
        found = {}
        for cell in nbformat.read(build.NOTEBOOKS / "23_8b.ipynb", as_version=4).cells:
            if cell.cell_type == "code" and ABOUT_8B not in cell.source:
                exec(compile(cell.source, "chapter 23", "exec"), found)
        return found, capsys.readouterr().out

    return run


@pytest.fixture
def folder(tmp_path, write_model):
    """Return a folder with a little model and Llama 3's tokenizer."""
    write_model(tmp_path / "model", LITTLE)
    shutil.copy(assets.fetch(assets.LLAMA3_TOKENIZER), tmp_path / "model")
    return tmp_path / "model"


def test_eight_devices_share_the_weights_of_a_folder(chapter, folder):
    found, said = chapter(folder)  # the tests have eight virtual devices
    assert found["plan"].mesh == (2, 4) and "split over a mesh of 2x4" in said
    assert len(found["model"].embed.get_value().devices()) == 8
    assert found["model"].layout is not None and found["chips"] == 1
    assert "meaningless" not in said.lower()


def test_random_weights_are_called_meaningless(chapter):
    found, said = chapter("random", Machine("cpu", 1, 24 * 2**30, "cpu"))
    assert found["plan"].mesh is None
    assert "what the model will say is meaningless" in said
    assert "Meaningless, as the weights are random." in said


def test_a_chip_gets_bfloat16_and_chunks(chapter):
    found, said = chapter("random", Machine("gpu", 1, 60e9, "a chip"))
    assert (found["plan"].dtype, found["plan"].quant) == ("bfloat16", None)
    assert (found["chunk"], found["number"]) == (8, 2)
    assert "here, 8B by its slices      bfloat16" in said


def test_where_8b_does_not_fit_its_slice_and_a_small_model_run(chapter, folder):
    found, said = chapter(folder, Machine("cpu", 1, 1.1e9 / 0.8, "cpu"), LARGE)
    assert "this machine: 0.2 billion parameters take 0.2 GB even in int8" in said
    assert found["sliced"] == {"quant": "int8"}
    assert found["config"].num_layers == LITTLE.num_layers


def test_a_machine_too_small_for_the_weights_says_so(chapter):
    with pytest.raises(InputError, match="take a machine with more memory, or a smaller model"):
        chapter("random", Machine("cpu", 1, 1.1e9 / 0.8, "cpu"), LARGE)
