import numpy as np

from llama_nb import check


def test_unfinished_pairs():
    def right(H, theta, context, turn=2 * np.pi, size=None):
        frequencies = theta ** -(np.arange(0, H, 2) / (size or H))
        return int((context * frequencies < turn).sum())

    assert check.unfinished_pairs(right)
    assert not check.unfinished_pairs(lambda H, t, c: right(H, t, c, turn=1.0))  # radians
    assert not check.unfinished_pairs(lambda H, t, c: H // 2 - right(H, t, c))  # those that do
    assert not check.unfinished_pairs(lambda H, t, c: right(H, t, c, size=H // 2))


def test_to_neighbours():
    def right(weight):
        first, second = np.split(weight, 2, axis=-1)
        return np.stack([first, second], axis=-1).reshape(weight.shape)

    assert check.to_neighbours(right)
    assert not check.to_neighbours(lambda w: w)
    # The way from Meta's layout to ours; for H = 4 it is the same.
    assert not check.to_neighbours(lambda w: np.concatenate([w[..., ::2], w[..., 1::2]], axis=-1))
    assert not check.to_neighbours(lambda w: np.stack(np.split(w, 2, axis=-1), axis=-1))


def test_slower_theta(capsys):
    assert check.slower_theta(lambda H, theta, factor: theta * factor ** (H / (H - 2)))
    assert not check.slower_theta(lambda H, theta, factor: theta * factor)
    assert not check.slower_theta(lambda H, theta, factor: theta * factor ** ((H - 2) / H))
    capsys.readouterr()
    assert not check.slower_theta(lambda H, theta, factor: None)
    assert "returned None" in capsys.readouterr().out
