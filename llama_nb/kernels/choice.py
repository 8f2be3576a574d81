"""Which kernels a program uses: decided once, by the device that it is for."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from llama_nb.errors import InputError

KINDS = ("auto", "xla", "pallas")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A static argument of jitted programs: "xla" or "pallas", and what a kernel must know.

    Attributes
    ----------
    kind
        "pallas" uses the kernels of this package, or of JAX where its own are faster.
    platform
        Of the device: "tpu", "gpu" or "cpu" (kernels then run in the interpreter, slowly).
    chip
        The device's name; sizes of blocks depend on it.
    """

    kind: str
    platform: str
    chip: str


def choose(attention: str, device: Any) -> Choice:
    """Return what "auto", "xla" or "pallas" means on a device.

    "auto" is "pallas" on TPUs, and on GPUs for which the kernel can be built; otherwise "xla".

    Raises
    ------
    InputError
        For another name.
    """
    if attention not in KINDS:
        raise InputError(f"attention {attention!r} is unknown; known: {', '.join(KINDS)}.")
    platform = "gpu" if device.platform in ("gpu", "cuda", "rocm") else device.platform
    if attention == "auto":
        attention = "pallas" if platform == "tpu" or _gpu_kernels(platform) else "xla"
    return Choice(attention, platform, device.device_kind)


def own_chip() -> str | None:
    """Return what JAX calls this process's TPU, or None where there is none."""
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else None


def _gpu_kernels(platform: str) -> bool:
    if platform != "gpu":
        return False
    from llama_nb.kernels import decode_gpu

    return not decode_gpu.available()


def dispatch(
    implementation: Choice | str | None,
    arguments: tuple[Any, ...],
    *,
    tpu: Callable[..., Any],
    gpu: Callable[..., Any],
    xla: Callable[..., Any],
    interpret: Any = False,
) -> Any:
    """Call a kernel of a platform, or what XLA makes of the plain formula.

    Parameters
    ----------
    implementation
        A `Choice`; "xla"; "pallas", which on CPU is the TPU kernel, interpreted; or None, which is
        the kernel of the platform that the program is compiled for, and XLA where there is none.
    arguments
        Of all three functions; `tpu` also takes `chip` (None: this process's) and `interpret`.
    interpret
        True, or Pallas' parameters: interpret the TPU kernel wherever this runs.

    Raises
    ------
    InputError
        For another name.
    """
    compiled = functools.partial(tpu, chip=None, interpret=False)
    interpreted = functools.partial(tpu, chip=None, interpret=interpret or True)
    if isinstance(implementation, Choice) and implementation.kind == "pallas" and not interpret:
        compiled = functools.partial(tpu, chip=implementation.chip, interpret=False)
        known = {"tpu": compiled, "gpu": gpu, "cpu": interpreted}
        return known.get(implementation.platform, xla)(*arguments)
    name = implementation.kind if isinstance(implementation, Choice) else implementation
    if name not in (None, "pallas", "xla"):
        raise InputError(f"implementation {name!r} is unknown; known: pallas, xla, or None.")
    if interpret:
        return interpreted(*arguments)
    if name == "xla":
        return xla(*arguments)
    cpu = interpreted if name == "pallas" else xla
    return lax.platform_dependent(*arguments, tpu=compiled, cuda=gpu, cpu=cpu, default=xla)
