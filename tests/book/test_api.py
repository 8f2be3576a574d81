"""Every public name has a docstring that speaks of parameters that it has, and a place."""

import dataclasses
import importlib
import inspect
import re

import pytest
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.inventory import InventoryFile

import llama_nb
from book import api, build, docstrings

MODULES = ["llama_nb", *api.modules()]


def own(module):
    """Yield the name and the value of every public function and class that a module defines."""
    for name, thing in vars(importlib.import_module(module)).items():
        if not name.startswith("_") and getattr(thing, "__module__", "") == module:
            if isinstance(thing, type) or callable(thing):
                yield f"{module}.{name}", thing


def public(module):
    """Yield what `own` does, and the public methods of its classes."""
    for name, thing in own(module):
        yield name, thing
        if isinstance(thing, type):
            for part, method in vars(thing).items():
                method = getattr(method, "__func__", method)
                if part == "__call__" or not part.startswith("_"):
                    if inspect.isfunction(method):
                        yield f"{name}.{part}", method


def described(thing):
    """Return the parameters and attributes that a docstring describes."""
    text = str(NumpyDocstring(inspect.getdoc(thing) or "", Config(napoleon_use_ivar=True)))
    return {name.replace("\\", "").lstrip("*") for name in re.findall(r":(?:param|ivar) (\S+):", text)}


def parameters(thing):
    """Return the parameters that a function takes, or a class' constructor and its fields."""
    names = set(inspect.signature(thing).parameters)
    if isinstance(thing, type):
        names |= {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
        names |= set(dir(thing)) | set(getattr(thing, "__annotations__", {}))
    return names


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    assert importlib.import_module(module).__doc__
    for name, thing in public(module):
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert thing.__doc__, name
            continue
        # A method that a base class or a protocol already explains needs no docstring of its own.
        if not isinstance(thing, type) and "." in thing.__qualname__:
            assert described(thing) <= parameters(thing), name
            continue
        assert inspect.getdoc(thing), name
        assert described(thing) <= parameters(thing), name
