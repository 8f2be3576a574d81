"""The notebooks on Colab: the setup cell installs what is missing and upgrades nothing.

That each notebook has the right badge and this cell is tested in `test_book.py`.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from book import build, notebooks, strip
from llama_nb import results

# What Colab has that the book needs, or that decides which versions pip takes.
COLAB = ["jax", "jaxlib", "flax", "transformers", "matplotlib", "sentencepiece", "ipyparallel"]
COLAB += ["nbclient", "ipykernel"]  # these run the notebook


def lines(name):
    """Return a requirements file's lines without comments."""
    text = (build.ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_requirements_accept_colabs_versions():
    there = dict(line.split("==") for line in lines("constraints/colab.txt"))
    wanted = {r.name: r.specifier for r in map(Requirement, lines("requirements.txt"))}
    assert {"jax", "flax"} <= there.keys() & wanted.keys()
    for name in there.keys() & wanted.keys():
        assert there[name] in wanted[name], name


def test_results_are_fetched_from_the_branch_of_the_badges():
    assert strip.repository()[1] == results.BRANCH


def run_setup(monkeypatch, found):
    """Run the setup cell with llama_nb there or not; return what it would have run."""
    commands = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command))
    exec(compile(strip.setup_source(), "setup cell", "exec"), {})
    return commands


def test_setup_does_nothing_where_the_package_is(monkeypatch):
    assert run_setup(monkeypatch, found=object()) == []


def test_setup_installs_the_repository_and_upgrades_nothing(monkeypatch):
    monkeypatch.delenv("LLAMA_NB_SOURCE", raising=False)
    url, branch = strip.repository()
    (command,) = run_setup(monkeypatch, found=None)
    assert command == [sys.executable, *["-m", "pip", "install", "--quiet"], f"git+{url}@{branch}"]
    monkeypatch.setenv("LLAMA_NB_SOURCE", "elsewhere")
    assert run_setup(monkeypatch, found=None)[0][-1] == "elsewhere"


def python_313():
    """Return an interpreter of Colab's version that runs, or None."""
    places = [shutil.which("python3.13"), *Path.home().glob(".pyenv/versions/3.13*/bin/python")]
    for place in filter(None, places):
        said = subprocess.run([place, "--version"], capture_output=True, text=True).stdout
        if said.startswith("Python 3.13."):
            return place
    return None


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of what pip needs, for building leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(build.ROOT / name, copy)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(build.ROOT / "llama_nb", copy / "llama_nb", ignore=skip)
    return copy


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Return the interpreter of an environment with Colab's versions, and nothing of ours."""
    interpreter = python_313()
    if interpreter is None:
        pytest.skip("no Python 3.13, which is Colab's")
    python = tmp_path_factory.mktemp("colab") / "venv" / "bin" / "python"
    place, pins = python.parents[1], build.ROOT / "constraints" / "colab.txt"
    if uv := shutil.which("uv"):
        call([uv, "venv", "--quiet", "--seed", "--python", interpreter, place])
        pip = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        call([interpreter, "-m", "venv", place])
        pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    call([*pip, "--constraint", pins, *COLAB])
    return python


def call(command, **variables):
    """Run a command with an environment that knows nothing of the checkout; return what it says."""
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    env = {k: v for k, v in notebooks.kernel_env().items() if k not in left_out}
    done = subprocess.run(
        list(map(str, command)), env={**env, **variables}, capture_output=True, text=True
    )
    if done.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
        pytest.fail(f"{command} failed:\n{text[-4000:]}", pytrace=False)
    return done.stdout


def installed(python):
    """Return the versions of an environment's packages."""
    listed = json.loads(call([python, "-m", "pip", "list", "--format", "json"]))
    return {package["name"].lower(): package["version"] for package in listed}


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["02_rmsnorm", "23_8b"])
def test_chapter_runs_in_colabs_environment(colab, source, stem):
    before = installed(colab)
    pins = dict(line.split("==") for line in lines("constraints/colab.txt"))
    assert {name: before[name] for name in pins.keys() & before.keys()}.items() <= pins.items()
    call(
        [colab, "-m", "jupyter", "execute", build.NOTEBOOKS / f"{stem}.ipynb", "--timeout=600"],
        LLAMA_NB_SOURCE=os.fspath(source),
        LLAMA_NB_8B="small",
    )
    after = installed(colab)
    changed = {name: (before[name], after.get(name)) for name in before}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    assert not changed, f"the setup cell changed {changed}"
    assert after.get("llama-nb", after.get("llama_nb"))
