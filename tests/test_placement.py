"""What fits where, for every machine that the book names and some that are too small."""

import dataclasses

import jax
import pytest

from llama_nb import hardware, placement, presets
from llama_nb.errors import InputError
from llama_nb.placement import Machine, place

EIGHT = presets.get("llama3.1-8b")
GIB = 2**30


@pytest.mark.parametrize(
    ("machine", "quant", "dtype", "mesh", "capacity"),
    [
        (Machine("tpu", 1, 15.75 * GIB), "int8", "bfloat16", None, 8192),  # v5e-1
        (Machine("tpu", 1, 31.24 * GIB), None, "bfloat16", None, 8192),  # v6e-1
        (Machine("tpu", 8, 15.75 * GIB), None, "bfloat16", (2, 4), 8192),  # v5e-8
        (Machine("tpu", 4, 15.75 * GIB), None, "bfloat16", (1, 4), 8192),
        (Machine("gpu", 1, 0.75 * 80e9), None, "bfloat16", None, 8192),  # A100, H100
        (Machine("gpu", 1, 0.75 * 24e9), "int8", "bfloat16", None, 8192),  # L4
        (Machine("gpu", 1, 0.75 * 15e9), "int8", "bfloat16", None, 8192),  # T4
        (Machine("gpu", 3, 80e9), None, "bfloat16", (1, 2), 8192),  # three: two take part
        (Machine("cpu", 1, 24 * GIB), "int8", "float32", None, 2048),
        (Machine("cpu", 8, 24 * GIB), "int8", "float32", (2, 4), 2048),  # one memory for all
        (Machine("cpu", 1, 12.7 * GIB), "int8", "float32", None, 2048),  # Colab without a chip
        (Machine("cpu", 1, float("nan")), "int8", "float32", None, 2048),  # Windows
    ],
    ids=str,
)
def test_where_8b_goes(machine, quant, dtype, mesh, capacity):
    plan = place(EIGHT, machine)
    assert (plan.quant, plan.dtype, plan.mesh, plan.capacity) == (quant, dtype, mesh, capacity)
    assert plan.weights == pytest.approx(EIGHT.param_count() * (1 if quant else 2), rel=2e-3)
    assert plan.cache == capacity * EIGHT.cache_bytes_per_token(4 if machine.kind == "cpu" else 2)
    assert plan.chips == (mesh[0] * mesh[1] if mesh else 1)
    assert plan.why.startswith(quant or dtype) and plan.why.endswith("GB.")
    assert ("2x4" in plan.why) == (mesh == (2, 4))
    if machine.memory == machine.memory:
        whole = machine.memory * (1 if machine.kind == "cpu" else plan.chips)
        assert plan.weights + plan.cache < 0.9 * whole


def test_the_conversation_is_as_long_as_is_wanted_and_no_longer_than_the_context():
    machine = Machine("gpu", 1, 60e9)
    assert place(EIGHT, machine, longest=32_768).capacity == 32_768
    assert place(EIGHT, Machine("gpu", 1, 12e9), longest=32_768).capacity == 8192  # halved twice
    short = dataclasses.replace(EIGHT, context=1000)
    assert place(short, machine).capacity == 1000


def test_a_small_model_stays_wide_on_a_cpu():
    plan = place(presets.get("smollm2-135m"), Machine("cpu", 1, 8 * GIB))
    assert (plan.quant, plan.dtype) == (None, "float32")


@pytest.mark.parametrize(
    "machine", [Machine("cpu", 1, 8 * GIB), Machine("tpu", 1, 8 * GIB), Machine("cpu", 8, 8 * GIB)]
)
def test_what_does_not_fit_is_said_in_one_sentence(machine):
    with pytest.raises(InputError, match=r"8\.0 billion .* even in int8, .* smaller model\.$"):
        place(EIGHT, machine)


def test_a_plan_says_how_to_load():
    options = place(EIGHT, Machine("tpu", 8, 15.75 * GIB)).options()
    assert (options["quant"], options["dtype"].name) == (None, "bfloat16")
    assert dict(options["mesh"].shape) == {"data": 2, "model": 4}
    options = place(EIGHT, Machine("tpu", 1, 15.75 * GIB)).options()
    assert (options["quant"], options["mesh"]) == ("int8", None)


def test_what_is_seen_here():
    machine = placement.look()
    assert (machine.kind, machine.count) == ("cpu", jax.local_device_count())
    assert machine.memory == hardware.memory_bytes() > GIB
    assert f"{machine.memory / 1e9:.1f} GB in all" in str(machine)
