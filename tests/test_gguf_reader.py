"""Our reader of GGUF reads what the package's own reads, from the same map."""

import mmap

import gguf
import numpy as np
import pytest

from llama_nb.gguf_reader import gguf_reader


@pytest.fixture
def path(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_token_list(["a", "<s>", "é"])
    writer.add_rope_freq_base(1e5)
    writer.add_tensor("wide", np.arange(64, dtype=np.float32).reshape(2, 32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return tmp_path / "small.gguf"


def test_it_reads_what_the_package_reads(path):
    ours, theirs = gguf_reader(path), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert ours.fields[name].contents() == field.contents()
    (tensor,), (same,) = ours.tensors, theirs.tensors
    assert tensor.name == same.name and list(tensor.shape) == list(same.shape)
    np.testing.assert_array_equal(tensor.data, same.data)


def test_tensors_stay_in_the_file(path):
    (tensor,) = gguf_reader(path).tensors
    assert type(tensor.data) is np.ndarray
    base = tensor.data
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
