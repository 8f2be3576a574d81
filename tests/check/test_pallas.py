import numpy as np

from llama_nb import check


def test_matmul_bytes(capsys):
    def right(M, N, K, bm, bn, bk, itemsize):
        along_k = bk < K
        x = M * K * (N // bn if along_k else 1)
        w = K * N * (M // bm if along_k or bn < N else 1)
        return itemsize * (x + w + M * N)

    def always_again(M, N, K, bm, bn, bk, itemsize):  # though a block may stay
        return itemsize * (M * K * (N // bn) + K * N * (M // bm) + M * N)

    def out_every_step(M, N, K, bm, bn, bk, itemsize):
        return right(M, N, K, bm, bn, bk, itemsize) + itemsize * M * N * (K // bk - 1)

    assert check.matmul_bytes(right)
    assert not check.matmul_bytes(always_again)
    assert not check.matmul_bytes(out_every_step)
    assert not check.matmul_bytes(lambda *args: right(*args[:6], 2))
    capsys.readouterr()
    assert not check.matmul_bytes(lambda M, N, K, bm, bn, bk, i: i * (M * K + K * N + M * N))
    assert capsys.readouterr().out.count("\n") == 1


def column_sums(x, block, start=True, mask=True):
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    rows, width = x.shape

    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        if start:
            pl.when(i == 0)(lambda: o_ref.__setitem__(..., jnp.zeros_like(o_ref)))
        row = i * block + jax.lax.broadcasted_iota(jnp.int32, (block, width), 0)
        kept = jnp.where(row < rows, x_ref[...], 0.0) if mask else x_ref[...]
        o_ref[...] += kept.sum(axis=0, keepdims=True)

    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, block),),
        in_specs=[pl.BlockSpec((block, width), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((1, width), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((1, width), x.dtype),
        interpret=True,
    )(x)[0]


def test_column_sums():
    assert check.column_sums(column_sums)
    assert not check.column_sums(lambda x, block: column_sums(x, block, start=False))
    assert not check.column_sums(lambda x, block: column_sums(x, block, mask=False))
    assert not check.column_sums(lambda x, block: x[: len(x) // block * block].sum(axis=0))
    assert not check.column_sums(lambda x, block: x.sum(axis=1))


def test_largest_block(capsys):
    def right(D, itemsize, limit, per_row=lambda D, itemsize: 4 * D * itemsize + 4 * D):
        return limit // per_row(D, itemsize) // 8 * 8

    assert check.largest_block(right)
    assert not check.largest_block(lambda *a: right(*a, lambda D, i: 2 * D * i + 4 * D))  # single
    assert not check.largest_block(lambda *a: right(*a, lambda D, i: 4 * D * i))  # no float32
    assert not check.largest_block(lambda D, i, limit: limit // (4 * D * i + 4 * D))  # not by 8
    capsys.readouterr()
    assert not check.largest_block(lambda *a: np.nan)
    assert "NaN" in capsys.readouterr().out
