import numpy as np

from llama_nb import check


def test_window_mask():
    def distance(T):
        return np.arange(T)[:, None] - np.arange(T)[None, :]

    assert check.window_mask(lambda T, w: (distance(T) >= 0) & (distance(T) < w))
    assert not check.window_mask(lambda T, w: distance(T) < w)  # sees the future
    assert not check.window_mask(lambda T, w: (distance(T) >= 0) & (distance(T) <= w))  # one more
    assert not check.window_mask(lambda T, w: ((distance(T) >= 0) & (distance(T) < w)).T)
    assert not check.window_mask(lambda T, w: distance(T) >= 0)  # no window


def test_grouped_attention():
    def attend(q, k, v, power=-0.5, causal=True, spread=np.repeat):
        G, T, H = q.shape[2] // k.shape[2], q.shape[1], q.shape[3]
        k, v = (spread(a, G) for a in (k, v))
        scores = np.einsum("btnh,bsnh->bnts", q, k) * H**power
        if causal:
            scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)

    def repeat(a, G):
        return np.repeat(a, G, axis=2)

    def tile(a, G):
        return np.tile(a, (1, 1, G, 1))

    assert check.grouped_attention(lambda q, k, v: attend(q, k, v, spread=repeat))
    assert not check.grouped_attention(lambda q, k, v: attend(q, k, v, spread=tile))  # n % K
    assert not check.grouped_attention(lambda q, k, v: attend(q, k, v, power=0, spread=repeat))
    assert not check.grouped_attention(lambda q, k, v: attend(q, k, v, power=0.5, spread=repeat))
    assert not check.grouped_attention(lambda q, k, v: attend(q, k, v, causal=False, spread=repeat))
    assert not check.grouped_attention(lambda q, k, v: attend(q[:, :, :1], k, v, spread=repeat))


def test_merge_softmax():
    def right(m1, z1, o1, m2, z2, o2):
        m = max(m1, m2)
        a, b = z1 * np.exp(m1 - m), z2 * np.exp(m2 - m)
        return (a * o1 + b * o2) / (a + b)

    def overflows(m1, z1, o1, m2, z2, o2):
        with np.errstate(over="ignore", invalid="ignore"):
            a, b = z1 * np.exp(m1), z2 * np.exp(m2)
            return (a * o1 + b * o2) / (a + b)

    assert check.merge_softmax(right)
    assert not check.merge_softmax(overflows)
    assert not check.merge_softmax(lambda m1, z1, o1, m2, z2, o2: (o1 + o2) / 2)
    assert not check.merge_softmax(  # forgets that the sums have different references
        lambda m1, z1, o1, m2, z2, o2: (z1 * o1 + z2 * o2) / (z1 + z2)
    )
