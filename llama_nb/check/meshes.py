"""Exercises of chapter 15."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from llama_nb.check.compare import Verdict, run

Spec = tuple[str | tuple[str, ...] | None, ...]


def bytes_per_device(
    function: Callable[[tuple[int, ...], Spec, dict[str, int], int], int],
) -> Verdict:
    """Check `f(shape, spec, mesh, itemsize) -> bytes` that each device holds.

    The spec has an entry per dimension: None, a mesh axis, or several; the mesh maps each axis to
    its size.
    """
    spare = {"data": 2, "model": 4, "spare": 2}

    def cases():
        for shape, spec, mesh, itemsize in (
            ((4096, 32, 128), (None, "model", None), {"data": 2, "model": 4}, 2),
            ((4096, 14_336), ("data", "model"), {"data": 2, "model": 4}, 1),
            ((14_336, 4096), (None, ("data", "model")), {"data": 2, "model": 4}, 2),
            ((4096,), (None,), {"data": 4, "model": 4}, 4),
            ((8, 2048, 8, 128), (("data", "spare"), None, "model", None), spare, 2),
        ):
            axes = [
                name for part in spec for name in ((part,) if isinstance(part, str) else part or ())
            ]
            expected = math.prod(shape) * itemsize // math.prod(mesh[name] for name in axes)
            about = f"shape {shape}, spec {spec}, mesh {mesh}, {itemsize} bytes a number"
            yield about, (shape, spec, mesh, itemsize), expected

    return run("bytes_per_device", function, cases())


def ring_all_gather(function: Callable[[jax.Array, int], jax.Array]) -> Verdict:
    """Check `f(x, n)` in `shard_map`: each device's x (c,), from all n, as (n, c) on each.

    The mesh axis is `model`; parts may travel by `ppermute` only.
    """

    def cases():
        for n, c in ((4, 3), (2, 5), (8, 1)):
            if n <= jax.device_count():
                parts = np.random.default_rng(n).normal(size=(n, c)).astype(np.float32)
                expected = np.broadcast_to(parts, (n, n, c)).reshape(n * n, c).tolist()
                yield f"{n} devices with {c} numbers each", (parts.reshape(-1), n), expected

    def everywhere(x, n):
        return by_hand(
            lambda part: function(part, n), n, P("model"), P("model"), {"ppermute"}, (x,)
        )

    return run("ring_all_gather", everywhere, cases())


def scattered_product(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Verdict:
    """Check `f(x, w)` in `shard_map`: a product over a split dimension, its result split by F.

    Each of n devices has x (B, D/n) and w (D/n, F) and shall return (B, F/n). The mesh axis is
    `model`; the parts must be added by one reduce-scatter.
    """
    n = math.gcd(4, jax.device_count())

    def cases():
        for B, D, F in ((2, 8, 4), (4, 12, 16), (3, 4, 8)):
            rng = np.random.default_rng(D)
            x, w = (rng.normal(size=s).astype(np.float32) for s in ((B, D), (D, F)))
            expected = (x.astype(np.float64) @ w).tolist()
            yield f"B={B}, D={D}, F={F} on {n} devices", (x, w), expected

    def whole(x, w):
        specs = P(None, "model"), P("model", None)
        return by_hand(function, n, specs, P(None, "model"), {"reduce_scatter"}, (x, w))

    # An accelerator rounds the factors of float32 products; wrong formulas are far further off.
    return run("scattered_product", whole, cases(), atol=2e-2)


_TALKING = ("psum", "all_gather", "all_to_all", "ppermute", "reduce_scatter", "pmax", "pmin")


def by_hand(
    function: Callable, n: int, ins: Any, out: Any, allowed: set[str], arguments: tuple
) -> Any:
    """Return a function's result on n devices, None where it returns none."""
    mesh = Mesh(jax.devices()[:n], ("model",), axis_types=(AxisType.Auto,))
    returned = []

    def noted(*parts):
        result = function(*parts)
        returned.append(result)
        return parts[0] if result is None else result

    # No type check of what varies over devices, which differs between versions of JAX.
    mapped = jax.shard_map(noted, mesh=mesh, in_specs=ins, out_specs=out, check_vma=False)
    used = set(_primitives(jax.make_jaxpr(mapped)(*arguments).jaxpr))
    if returned[0] is None:
        return None
    for name in _TALKING:
        if any(name in one for one in used) and name not in allowed:
            raise ValueError(f"it uses {name}; only {', '.join(allowed)} may be used here.")
    return np.asarray(jax.jit(mapped)(*arguments))


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _primitives(inner)
