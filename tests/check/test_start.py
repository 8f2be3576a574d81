import numpy as np

from llama_nb import check


def test_top_tokens():
    def right(logits, k):
        weights = np.exp(logits - logits.max())
        ids = np.argsort(-logits)[:k]
        return ids, (weights / weights.sum())[ids]

    assert check.top_tokens(right)
    assert not check.top_tokens(lambda z, k: (np.argsort(z)[:k], right(z, k)[1]))  # least likely
    assert not check.top_tokens(lambda z, k: (right(z, k)[0], np.sort(z)[::-1][:k]))  # logits
    assert not check.top_tokens(lambda z, k: right(z, k)[0])


def test_cache_bytes():
    def right(c, tokens, itemsize):
        return 2 * c.num_layers * c.num_kv_heads * c.head_dim * tokens * itemsize

    assert check.cache_bytes(right)
    assert not check.cache_bytes(lambda c, t, i: right(c, t, i) // 2)  # keys only
    assert not check.cache_bytes(lambda c, t, i: right(c, t, i) * c.group_size)  # N, not K
