"""A model that attends through kernels, interpreted, says what it says without."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from llama_nb import presets, sharding
from llama_nb.__main__ import main
from llama_nb.errors import InputError
from llama_nb.kernels import Choice
from llama_nb.loading import load
from llama_nb.model import Llama, params_of, with_params
from llama_nb.session import Session

CONFIG = dataclasses.replace(presets.get("tiny"), num_heads=4, num_kv_heads=2)
PROMPTS = [list(range(3, 24)), [5], list(range(40, 49))]


def said(attention, *, cache_dtype=None, mesh=None, strategy="tp"):
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    # Weights of standard deviation 0.02 make logits of near ties; these don't.
    nnx.update(model, jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, nnx.state(model)))
    model.attention_impl = attention
    if mesh is not None:
        model.layout = sharding.layout(CONFIG, sharding.make_mesh(mesh), strategy)
    session = Session(model, 64, cache_dtype=cache_dtype)
    logits = session.feed(PROMPTS if mesh is None else PROMPTS[:1] * 4)
    tokens = np.stack(list(session.tokens(logits, 6)))
    more = session.feed([[7, 8, 9]] * tokens.shape[1])
    return np.asarray(logits), tokens, np.asarray(more), session.attention


@pytest.mark.parametrize("cache_dtype", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_same_tokens(cache_dtype):
    plain, kernel = (said(name, cache_dtype=cache_dtype) for name in ("xla", "pallas"))
    assert plain[3].kind == "xla" and kernel[3] == Choice("pallas", "cpu", "cpu")
    np.testing.assert_array_equal(kernel[1], plain[1])
    for ours, theirs in zip((kernel[0], kernel[2]), (plain[0], plain[2]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 if cache_dtype is None else 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "strategy"), [((2, 2), "tp"), ((1, 4), "tp"), ((2, 2), "2d"), ((4, 1), "dp")]
)
def test_same_tokens_on_a_mesh(mesh, strategy):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    plain, kernel = (
        said("xla", mesh=mesh, strategy=strategy),
        said("pallas", mesh=mesh, strategy=strategy),
    )
    np.testing.assert_array_equal(kernel[1], plain[1])
    np.testing.assert_allclose(kernel[0], plain[0], atol=2e-4)
    np.testing.assert_allclose(kernel[2], plain[2], atol=2e-4)


def test_auto_is_xla_on_cpu():
    assert said("auto")[3].kind == "xla"


def test_parameters_may_be_numpys():
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    model = with_params(CONFIG, jax.device_get(params_of(model)))
    assert Session(model, 64).attention.kind == "xla"


def test_unknown_names_are_refused(capsys):
    with pytest.raises(InputError, match="attention 'flash' is unknown"):
        load(attention_impl="flash")
    assert main(["generate", "hello", "--attention", "flash"]) == 2
    assert "attention 'flash' is unknown; known: auto, xla, pallas" in capsys.readouterr().err
    command = "compile --model llama3.1-8b --topology v5e:1x1 --attention flash"
    assert main(command.split()) == 2
    assert "attention 'flash' is unknown" in capsys.readouterr().err
