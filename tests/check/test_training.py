import numpy as np

from llama_nb import check


def losses(logits, targets):
    top = logits.max(-1, keepdims=True)
    norm = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return norm - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


def test_weighted_loss(capsys):
    def right(logits, targets, weights):
        return (losses(logits, targets) * weights).sum() / max(weights.sum(), 1)

    assert check.weighted_loss(right)
    assert not check.weighted_loss(lambda x, t, w: (losses(x, t) * w).mean())  # over all places
    assert "half of the targets" in capsys.readouterr().out
    assert not check.weighted_loss(  # 0/0
        lambda x, t, w: (losses(x, t) * w).sum() / np.where(w.sum() > 0, w.sum(), np.nan)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        assert not check.weighted_loss(  # overflows
            lambda x, t, w: (
                (
                    (np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, t[..., None], -1)[..., 0])
                    * w
                ).sum()
                / max(w.sum(), 1)
            )
        )


def test_clip_together():
    def right(gradients, limit):
        length = np.sqrt(sum((g**2).sum() for g in gradients))
        return [g * min(1.0, limit / max(length, 1e-12)) for g in gradients]

    assert check.clip_together(right)
    assert not check.clip_together(  # each by itself
        lambda gs, limit: [g * min(1.0, limit / max(np.sqrt((g**2).sum()), 1e-12)) for g in gs]
    )
    assert not check.clip_together(  # short ones made longer
        lambda gs, limit: [
            g * limit / max(np.sqrt(sum((x**2).sum() for x in gs)), 1e-12) for g in gs
        ]
    )
    assert not check.clip_together(lambda gs, limit: [np.clip(g, -limit, limit) for g in gs])
    assert not check.clip_together(lambda gs, limit: None)


def test_warmup_linear():
    def right(step, peak, warmup, steps):
        if step < warmup:
            return peak * step / warmup
        return peak * (steps - step) / (steps - warmup)

    assert check.warmup_linear(right)
    assert not check.warmup_linear(  # divides by a warmup of 0
        lambda s, p, w, n: p * s / w if s <= w else p * (n - s) / (n - w)
    )
    assert not check.warmup_linear(  # falls as if from step 0: a jump at the end of the warmup
        lambda s, p, w, n: p * s / w if s < w else p * (n - s) / n
    )
    assert not check.warmup_linear(lambda s, p, w, n: p * min(1, s / w) if w else p)  # never down
