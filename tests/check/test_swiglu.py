import math

import numpy as np

from llama_nb import check


def test_ffn_dim():
    def right(D, multiple, multiplier, rounding=math.ceil):
        width = int(8 * D / 3)
        width = width if multiplier is None else int(multiplier * width)
        return multiple * rounding(width / multiple)

    assert check.ffn_dim(right)
    assert not check.ffn_dim(lambda D, m, f: right(D, m, f, round))
    assert not check.ffn_dim(lambda D, m, f: right(D, m, f, math.floor))
    assert not check.ffn_dim(lambda D, m, f: (int(8 * D / 3 * (f or 1)) // m + 1) * m)
    assert not check.ffn_dim(lambda D, m, f: right(D, m, None))  # no multiplier
    assert not check.ffn_dim(lambda D, m, f: 4 * D)


def test_swiglu_gradient():
    def parts(gate, up):
        s = 1 / (1 + np.exp(-gate))
        return s, (s + gate * s * (1 - s)) * up, gate * s

    assert check.swiglu_gradient(lambda g, u: parts(g, u)[1:])
    assert not check.swiglu_gradient(lambda g, u: parts(g, u)[:0:-1])  # swapped
    assert not check.swiglu_gradient(lambda g, u: (parts(g, u)[0] * u, parts(g, u)[2]))
    assert not check.swiglu_gradient(lambda g, u: (parts(g, u)[1], parts(g, u)[0]))  # sigmoid
    assert not check.swiglu_gradient(lambda g, u: parts(g, u)[1])


def test_score_share():
    def right(c, context, heads="num_heads"):
        scores = 4 * c.num_layers * getattr(c, heads) * c.head_dim * context
        return scores / (c.flops_per_token(0) + scores)

    assert check.score_share(right)
    assert not check.score_share(lambda c, s: right(c, s, "num_kv_heads"))  # K, not N
    assert not check.score_share(lambda c, s: 100 * right(c, s))  # percent
    assert not check.score_share(lambda c, s: right(c, s) / (1 - right(c, s)))  # of the rest
