import numpy as np

from llama_nb import check


def test_quantize_outputs():
    def right(weight, axis=0, steps=127, safe=True):
        largest = np.abs(weight).max(axis=axis, keepdims=True)
        scale = np.where(largest == 0, 1, largest / steps) if safe else largest / steps
        with np.errstate(invalid="ignore"):
            values = np.rint(weight / scale).astype(np.int8)
        return values, scale.astype(np.float32)[0]

    def tensor(weight):
        values, scale = right(weight, axis=(0, 1))
        return values, np.full(weight.shape[1], scale[0])

    assert check.quantize_outputs(right)
    assert not check.quantize_outputs(tensor)
    assert not check.quantize_outputs(lambda w: right(w, axis=1))  # per input
    assert not check.quantize_outputs(lambda w: right(w, steps=128))  # 128 wraps to -128
    assert not check.quantize_outputs(lambda w: right(w, safe=False))  # 0 / 0
    assert not check.quantize_outputs(  # cuts off instead of rounding
        lambda w: ((w / right(w)[1]).astype(np.int8), right(w)[1])
    )
    assert not check.quantize_outputs(lambda w: (np.rint(w / right(w)[1]), right(w)[1]))  # floats
    assert not check.quantize_outputs(lambda w: right(w)[0])


def test_product_error_bound():
    def right(x, scales):
        return np.abs(x).sum(-1, keepdims=True) * scales / 2

    assert check.product_error_bound(right)
    assert not check.product_error_bound(lambda x, s: 2 * right(x, s))  # a whole step
    assert not check.product_error_bound(lambda x, s: np.abs(x.sum(-1, keepdims=True)) * s / 2)
    assert not check.product_error_bound(  # the typical error, not the worst
        lambda x, s: np.sqrt((x**2).sum(-1, keepdims=True)) * s / np.sqrt(12)
    )
    assert not check.product_error_bound(lambda x, s: np.abs(x) @ np.ones((x.shape[1], 1)) / 2)


def test_write_int8():
    def right(keys, scales, new, length, axis=-1):
        keys, scales = keys.copy(), scales.copy()
        return in_place(keys, scales, new, length, axis)

    def in_place(keys, scales, new, length, axis=-1):
        slots = slice(length, length + len(new))
        scales[slots] = np.abs(new).max(axis=axis, keepdims=True)[..., 0] / 127
        keys[slots] = np.rint(new / scales[slots][..., None])
        return keys, scales

    assert check.write_int8(right)
    assert not check.write_int8(in_place)
    assert not check.write_int8(lambda k, s, n, at: right(k, s, n, at, axis=(1, 2)))  # per position
    assert not check.write_int8(lambda k, s, n, at: right(k, s, n, at, axis=0))  # per feature
    assert not check.write_int8(lambda k, s, n, at: right(k, s, n, 0))  # over the past
    assert not check.write_int8(lambda k, s, n, at: right(k, s, n, at)[0])


def test_int8_scores():
    def right(q, keys, scales, spread=np.repeat):
        (N, H), K = q.shape, keys.shape[1]
        wide = spread(keys * scales[..., None], N // K, axis=1)
        return np.einsum("nh,snh->ns", q, wide) / np.sqrt(H)

    def tile(x, times, axis):
        return np.tile(x, (1, times, 1))

    assert check.int8_scores(right)
    assert not check.int8_scores(lambda q, k, s: right(q, k, s, tile))  # n % K instead of n // G
    assert not check.int8_scores(lambda q, k, s: right(q, k, s) * np.sqrt(q.shape[1]))
    assert not check.int8_scores(lambda q, k, s: right(q, k, np.ones_like(s)))  # scales forgotten
    assert not check.int8_scores(lambda q, k, s: right(q, k, s).T)
