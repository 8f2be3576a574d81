import numpy as np

from llama_nb import check


def test_side_by_side(capsys):
    def right(matrices, chips):
        shares = [matrix.reshape(len(matrix), chips, -1) for matrix in matrices]
        return np.concatenate(shares, axis=2).reshape(len(matrices[0]), -1)

    assert check.side_by_side(right)
    assert not check.side_by_side(lambda matrices, chips: np.concatenate(matrices, axis=1))
    assert not check.side_by_side(lambda matrices, chips: right(matrices[::-1], chips))
    assert not check.side_by_side(
        lambda matrices, chips: np.concatenate(
            [m.reshape(len(m), -1, chips) for m in matrices], axis=1
        ).reshape(len(matrices[0]), -1)
    )  # dealt out one by one
    capsys.readouterr()
    assert not check.side_by_side(lambda matrices, chips: None)
    assert "returned None" in capsys.readouterr().out


def test_smallest_slice():
    def right(config, batch, context, usable, free=0.1, cache=True):
        held = config.param_count() + cache * batch * context * config.cache_bytes_per_token(1)
        chips = 1
        while held / chips > (1 - free) * usable:
            chips *= 2
        return chips

    assert check.smallest_slice(right)
    assert not check.smallest_slice(lambda *a: right(*a, free=0))
    assert not check.smallest_slice(lambda *a: right(*a, cache=False))
    assert not check.smallest_slice(lambda c, b, s, u: right(c, 1, s, u))  # one sequence
    assert not check.smallest_slice(lambda c, b, s, u: int(np.ceil(c.param_count() / u)))
    assert not check.smallest_slice(lambda *a: None)


def test_best_offer():
    def right(logits, best=np.argmax):
        n, B, part = logits.shape
        token = logits.argmax(-1) + np.arange(n)[:, None] * part
        return token[best(logits.max(-1), 0), np.arange(B)]

    def last(values, axis):
        return len(values) - 1 - values[::-1].argmax(axis)

    assert check.best_offer(right)
    assert not check.best_offer(lambda x: right(x, last))  # the last of equal tokens
    assert not check.best_offer(lambda x: x.argmax(-1)[x.max(-1).argmax(0), range(x.shape[1])])
    assert not check.best_offer(lambda x: x.reshape(x.shape[1], -1).argmax(-1))  # mixed up
    assert not check.best_offer(lambda x: None)
