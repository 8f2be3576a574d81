import jax
import jax.numpy as jnp
import pytest

from llama_nb import check


def test_bytes_per_device():
    def right(shape, spec, mesh, itemsize, parts=1):
        for size, names in zip(shape, spec, strict=True):
            names = () if names is None else (names,) if isinstance(names, str) else names
            for name in names:
                size //= mesh[name]
            parts *= size
        return parts * itemsize

    def all_devices(shape, spec, mesh, itemsize):
        whole = right(shape, (None,) * len(shape), mesh, itemsize)
        for size in mesh.values():
            whole //= size
        return whole

    def one_axis_a_dimension(shape, spec, mesh, itemsize):
        firsts = [part[0] if isinstance(part, tuple) else part for part in spec]
        return right(shape, firsts, mesh, itemsize)

    assert check.bytes_per_device(right)
    assert not check.bytes_per_device(all_devices)  # as if nothing were kept twice
    assert not check.bytes_per_device(one_axis_a_dimension)
    assert not check.bytes_per_device(lambda s, p, m, i: right(s, p, m, 1))  # numbers, not bytes
    assert not check.bytes_per_device(lambda *arguments: None)


def test_ring_all_gather(capsys):
    def right(x, n, steps=0, shift=1, keep=0):
        me = jax.lax.axis_index("model")
        out, moving = jnp.zeros((n, *x.shape), x.dtype).at[me].set(x), x
        for t in range(1, n - steps):
            pairs = [(i, (i + shift) % n) for i in range(n)]
            moving = jax.lax.ppermute(moving, "model", pairs)
            out = out.at[(me - (t if not keep else -t)) % n].set(moving)
        return out

    def by_name(x, n):
        return jax.lax.all_gather(x, "model")

    assert check.ring_all_gather(right)
    assert not check.ring_all_gather(lambda x, n: right(x, n, steps=1))  # stops too early
    assert not check.ring_all_gather(lambda x, n: right(x, n, shift=-1))  # in reverse order
    assert not check.ring_all_gather(lambda x, n: right(x, n, keep=1))
    assert not check.ring_all_gather(lambda x, n: right(x, n).reshape(-1))
    capsys.readouterr()
    assert not check.ring_all_gather(by_name)
    assert "only ppermute" in capsys.readouterr().out
    assert not check.ring_all_gather(lambda x, n: None)
    assert "returned None" in capsys.readouterr().out


@pytest.mark.skipif(jax.device_count() < 4, reason="on one device every sum is complete")
def test_scattered_product(capsys):
    def right(x, w, axis=1):
        return jax.lax.psum_scatter(x @ w, "model", scatter_dimension=axis, tiled=True)

    def sliced(x, w):
        y = jax.lax.psum(x @ w, "model")
        width = y.shape[1] // 4
        start = jax.lax.axis_index("model") * width
        return jax.lax.dynamic_slice_in_dim(y, start, width, axis=1)

    assert check.scattered_product(right)
    assert not check.scattered_product(lambda x, w: x @ w)  # not added, not split
    assert not check.scattered_product(lambda x, w: (x @ w)[:, : w.shape[1] // 4])
    assert not check.scattered_product(lambda x, w: right(x, w, axis=0))
    capsys.readouterr()
    assert not check.scattered_product(sliced)  # right, for twice the bytes
    assert "psum" in capsys.readouterr().out
    assert not check.scattered_product(lambda x, w: None)
