"""What some tests need of the machine."""

import importlib.util

import pytest

compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


def slow(*values):
    """Return parameters that only the whole suite tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
