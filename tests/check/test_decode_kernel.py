import numpy as np

from llama_nb import check


def test_blocks_read(capsys):
    def right(starts, lengths, block):
        count = (lengths - 1) // block - starts // block + 1
        return np.where(lengths > starts, count, 0).sum()

    def by_number_of_slots(starts, lengths, block):
        return (-(-np.maximum(lengths - starts, 0) // block)).sum()

    def ignores_starts(starts, lengths, block):
        return (-(-lengths // block)).sum()

    assert check.blocks_read(right)
    assert not check.blocks_read(by_number_of_slots)
    assert not check.blocks_read(ignores_starts)
    assert not check.blocks_read(  # an empty sequence counts
        lambda s, n, b: ((n - 1) // b - s // b + 1).sum()
    )
    assert not check.blocks_read(lambda s, n, b: None)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_online_update(capsys):
    def right(m, total, y, scores, values, largest=max, old=True, mixed=True):
        now = largest(m, scores.max())
        with np.errstate(over="ignore", invalid="ignore"):
            weights, shrink = np.exp(scores - now), np.exp(m - now)
            total = total * (shrink if old else 1) + weights.sum()
            return now, total, y * (shrink if mixed else 1) + weights @ values

    assert check.online_update(right)
    assert not check.online_update(lambda *a: right(*a, old=False))  # the sum keeps its unit
    assert not check.online_update(lambda *a: right(*a, mixed=False))  # and so do the values
    assert not check.online_update(lambda *a: right(*a, largest=lambda m, now: now))  # forgets
    assert not check.online_update(lambda *a: right(*a, largest=lambda m, now: 0.0))  # overflows
    assert not check.online_update(lambda *a: list(right(*a)))
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_window_block(capsys):
    def right(i, length, window, block):
        return min(max(length - window, 0) // block + i, (length - 1) // block)

    assert check.window_block(right)
    assert not check.window_block(lambda i, n, w, b: max(n - w, 0) // b + i)  # does not stop
    assert not check.window_block(lambda i, n, w, b: min(i, (n - 1) // b))  # reads everything
    assert not check.window_block(lambda i, n, w, b: min((n - w) // b + i, (n - 1) // b))  # < 0
    assert not check.window_block(lambda i, n, w, b: min(max(n - w, 0) // b + i, n // b))  # end
    assert not check.window_block(  # begins a slot late
        lambda i, n, w, b: min(max(n - w + 1, 0) // b + i, (n - 1) // b)
    )
    assert len(capsys.readouterr().out.splitlines()) == 6
