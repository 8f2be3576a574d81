"""Every public name has a docstring that speaks of parameters that it has, and a place."""

import importlib
import inspect
import re

import pytest
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.inventory import InventoryFile

from book import api, build, docstrings

MODULES = ["llama_nb", *api.modules()]


def own(module):
    """Yield the name and the value of every public function and class that a module defines."""
    for name, thing in vars(importlib.import_module(module)).items():
        here = not name.startswith("_") and getattr(thing, "__module__", "") == module
        if here and callable(thing):
            yield f"{module}.{name}", thing


def public(module):
    """Yield what `own` does, and the public methods of its classes."""
    for name, thing in own(module):
        yield name, thing
        if isinstance(thing, type):
            for part, method in vars(thing).items():
                method = getattr(method, "__func__", method)
                shown = part == "__call__" or not part.startswith("_")
                if shown and inspect.isfunction(method):
                    yield f"{name}.{part}", method


def described(thing):
    """Return the parameters and attributes that a docstring describes."""
    text = str(NumpyDocstring(inspect.getdoc(thing) or "", Config(napoleon_use_ivar=True)))
    return {
        name.replace("\\", "").lstrip("*") for name in re.findall(r":(?:param|ivar) (\S+):", text)
    }


def real(thing):
    """Return the names that a docstring may describe: parameters, and a class' attributes."""
    if not isinstance(thing, type):
        return set(inspect.signature(thing).parameters)
    set_by_itself = set(re.findall(r"self\.(\w+)", inspect.getsource(thing)))
    annotated = set(inspect.get_annotations(thing))
    return {*inspect.signature(thing.__init__).parameters, *set_by_itself, *annotated, *vars(thing)}


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    assert importlib.import_module(module).__doc__
    for name, thing in own(module):
        assert inspect.getdoc(thing), f"{name} has no docstring"
    for name, thing in public(module):
        assert described(thing) <= real(thing), f"{name} describes what it does not have"


def test_a_wrong_docstring_is_noticed():
    def double(x, *, times=2):
        """Return a multiple.

        Parameters
        ----------
        x, y
            What is multiplied.
        """

    assert described(double) - real(double) == {"y"}


def test_every_module_is_on_one_page():
    placed = [module for page in api.PAGES for module in api.listed(page)]
    assert sorted(placed) == api.modules()
    assert len(placed) > 90
    for page in api.PAGES:
        assert f"_{page}.md" in (build.ROOT / f"book/{page}.md").read_text(encoding="utf-8")


def test_docstrings_show_blocks_and_stars_as_written():
    lines = ["Of shape (B, *inputs), not `(*a)`.", "", "    x  y", "", "Then", "-----", "", "    z"]
    docstrings.prepare(None, "", "", None, {}, lines)
    assert lines[0] == r"Of shape (B, \*inputs), not `(*a)`."
    assert lines[1:5] == ["", "::", "", "    x  y"]
    assert lines[5:] == ["", "Then", "-----", "", "    z"]


def test_attributes_that_share_a_description_are_apart():
    lines = ["Sizes.", "", "Attributes", "----------", "height, width", "    In pixels."]
    docstrings.prepare(None, "", "", None, {}, lines)
    assert lines[4:] == ["height", "width", "    In pixels."]


@pytest.mark.site
def test_every_public_name_is_on_the_site():
    index = build.SITE / "objects.inv"
    if not index.exists():
        pytest.skip("no site: run make book")
    with index.open("rb") as file:
        found = InventoryFile.load(file, "", lambda base, name: name)
    there = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    assert {name for module in MODULES for name, _ in own(module)} <= there
