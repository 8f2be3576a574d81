import numpy as np

from llama_nb import check


def test_fold_gain():
    assert check.fold_gain(lambda g, w: g[:, None, None] * w)
    assert not check.fold_gain(lambda g, w: g * w)  # along H; an error where the sizes differ
    assert not check.fold_gain(lambda g, w: w / g[:, None, None])
    assert not check.fold_gain(lambda g, w: (g[:, None, None] * w).reshape(len(g), -1))


def test_rms_norm_of_parts():
    def scaled(parts, scale):
        return tuple(part * scale for part in parts)

    def right(parts, eps):
        total = sum((part**2).sum(-1, keepdims=True) for part in parts)
        return scaled(parts, 1 / np.sqrt(total / sum(part.shape[-1] for part in parts) + eps))

    def alone(parts, eps):
        return tuple(p / np.sqrt((p**2).mean(-1, keepdims=True) + eps) for p in parts)

    def mean_of_means(parts, eps):
        mean = sum((p**2).mean(-1, keepdims=True) for p in parts) / len(parts)
        return scaled(parts, 1 / np.sqrt(mean + eps))

    assert check.rms_norm_of_parts(right)
    assert not check.rms_norm_of_parts(alone)
    assert not check.rms_norm_of_parts(mean_of_means)
    assert not check.rms_norm_of_parts(lambda parts, eps: right(parts, 0.0))
    assert not check.rms_norm_of_parts(lambda parts, eps: list(right(parts, eps)))


def test_centre_outputs():
    assert check.centre_outputs(lambda w: w - w.mean(-1, keepdims=True))
    assert not check.centre_outputs(lambda w: w - w.mean(0, keepdims=True))  # the other axis
    assert not check.centre_outputs(lambda w: w - w.mean())
    assert not check.centre_outputs(lambda w: w)
