"""What some tests need of the machine."""

import importlib.util

import pytest

compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)
