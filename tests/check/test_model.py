import numpy as np

from llama_nb import check


def test_residual_block():
    def right(x, norm_1, attention, norm_2, mlp):
        x = x + attention(norm_1(x))
        return x + mlp(norm_2(x))

    def post_norm(x, norm_1, attention, norm_2, mlp):
        x = norm_1(x + attention(x))
        return norm_2(x + mlp(x))

    assert check.residual_block(right)
    assert not check.residual_block(post_norm)
    assert not check.residual_block(lambda x, a, f, b, g: g(b(f(a(x)))))  # no residuals
    assert not check.residual_block(lambda x, a, f, b, g: x + f(a(x)) + g(b(x)))  # in parallel
    assert not check.residual_block(lambda x, a, f, b, g: right(x, b, f, a, g))  # norms swapped
    assert not check.residual_block(lambda x, a, f, b, g: a(x) + f(a(x)))


def test_param_count():
    assert check.param_count(lambda c: c.param_count())
    assert not check.param_count(lambda c: c.param_count() - c.embed_dim)  # the last norm
    assert not check.param_count(  # a tied head counted twice
        lambda c: c.param_count() + c.tied * c.vocab_size * c.embed_dim
    )
    assert not check.param_count(  # N heads of keys and values
        lambda c: (
            c.param_count()
            + 2 * c.num_layers * c.embed_dim * c.head_dim * (c.num_heads - c.num_kv_heads)
        )
    )


def test_greedy():
    def right(logits, ids, count, stop, row=-1):
        ids = list(ids)
        for _ in range(count):
            ids.append(int(np.argmax(logits(ids)[row])))
            if ids[-1] == stop:
                break
        return ids

    assert check.greedy(right)
    assert not check.greedy(lambda f, ids, n, stop: right(f, ids, n, stop, row=0))
    assert not check.greedy(lambda f, ids, n, stop: right(f, ids, n, -1))  # never stops
    assert not check.greedy(lambda f, ids, n, stop: right(f, ids, n, stop)[len(ids) :])
    assert not check.greedy(lambda f, ids, n, stop: ids + [int(np.argmax(f(ids)[-1]))] * n)
