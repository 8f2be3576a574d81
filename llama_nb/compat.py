"""The only place that knows that JAX and Flax changed between supported versions."""

import contextlib
import io
import logging
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

# XLA's CPU backend of jax 0.7.2 widens an int8 matrix element by element where one row meets it.
ONE_ROW_IS_SLOW = jax.__version_info__ < (0, 10)

# The TPU compiler that came with jax 0.7 has other options for collectives on SparseCores.
SPARSECORE_OPTIONS = jax.__version_info__ >= (0, 10)

# What a training step gives away. On CPU, jax 0.7.2 writes new weights where the backward pass
# still reads the old ones: three steps later an embedding is off by a quarter of the learning rate.
GIVEN_AWAY = ("params", "state") if jax.__version_info__ >= (0, 10) else ("state",)


def module_list(modules: list[nnx.Module]) -> Any:
    """Return a container of submodules: `nnx.List` since Flax 0.12, a plain list before."""
    return nnx.List(modules) if hasattr(nnx, "List") else modules


def value(variable: nnx.Variable) -> Any:
    """Return what an NNX variable holds; `.value` is deprecated since Flax 0.12."""
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def kernel_complaint(call: Callable[[Any], Any], cores: int = 1, **options: Any) -> str:
    """Run `call(interpret)` in the TPU interpreter; return the race or error it reports, or "".

    Options are those of `pltpu.InterpretParams`, which calls cores something else in each version.
    A race raises in jax 0.12; earlier ones print it and go on.
    """
    from jax.experimental.pallas import tpu as pltpu

    count = (
        "num_cores_or_threads"
        if hasattr(pltpu.InterpretParams, "num_cores_or_threads")
        else "num_cores_per_device"
    )
    options = {count: cores, **options}
    log, printed = logging.getLogger("jax._src.callback"), io.StringIO()
    before, log.disabled = log.disabled, True  # It would show the whole traceback.
    try:
        with contextlib.redirect_stdout(printed):
            jax.block_until_ready(call(pltpu.InterpretParams(detect_races=True, **options)))
        said = printed.getvalue()
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
    finally:
        log.disabled = before
        pltpu.reset_tpu_interpret_mode_state()
    found = re.search(r"RACE DETECTED.*?(?=\n\s*\n|\Z)", said, re.DOTALL)
    found = found or re.search(r"\w+Error: .*\Z", said.strip())
    lines = [line for line in found[0].splitlines() if "clock:" not in line] if found else []
    return re.sub(r"[,\s]+/\S+?:(\d+):\d+ ", r", line \1 ", "\n".join(lines))


def allow_compiling_for_descriptions() -> None:
    """Keep jax 0.7 from asking the description of a device for its default layouts: it crashes."""
    if jax.__version_info__ >= (0, 8):
        return
    from jax._src.interpreters import pxla

    original = pxla.is_default_layout
    if original.__name__ != "is_default_layout":
        return  # Done before.

    def without_descriptions(layout: Any, sharding: Any, aval: Any) -> bool:
        devices = getattr(sharding, "_device_assignment", ())
        if devices and type(devices[0].client).__name__ == "CompileOnlyPyClient":
            return True
        return original(layout, sharding, aval)

    pxla.is_default_layout = without_descriptions

    # It takes the compiler of a description to be as new as itself, and the one of its time reads
    # kernels of version 7 at most.
    from jax._src import tpu_custom_call

    tpu_custom_call.get_ir_version = lambda context: 7


def keep_no_programs_for_descriptions() -> None:
    """Keep JAX's persistent cache from programs for descriptions: it takes them, but reads none."""
    from jax._src import compilation_cache

    original = getattr(compilation_cache, "is_cache_used", None)
    if original is None or original.__name__ != "is_cache_used":
        return  # A JAX that does it elsewhere, or done before.

    def for_devices(backend: Any) -> bool:
        return type(backend).__name__ != "CompileOnlyPyClient" and original(backend)

    compilation_cache.is_cache_used = for_devices
