import itertools

from llama_nb import check


def test_tile_count():
    def right(T, queries, keys):
        return sum(-(-min(row + queries, T) // keys) for row in range(0, T, queries))

    assert check.tile_count(right)
    assert not check.tile_count(lambda T, q, k: -(-T // q) * -(-T // k))  # all
    assert not check.tile_count(lambda T, q, k: -(-T // q) * (-(-T // q) + 1) // 2)  # squares only
    assert not check.tile_count(  # beyond the last row
        lambda T, q, k: sum(-(-(row + q) // k) for row in range(0, T, q))
    )
    assert not check.tile_count(lambda T, q, k: None)


def test_flash_bytes():
    def right(T, N, K, H, queries, keys, itemsize, heads=None, again=0):
        asked = [s for t in range(0, T, queries) for s in range(-(-(t + queries) // keys))]
        blocks = 1 + sum(a != b or again for a, b in itertools.pairwise(asked))
        return itemsize * (2 * T * N * H + 2 * blocks * keys * (heads or K) * H)

    assert check.flash_bytes(right)
    assert not check.flash_bytes(  # keys and values once
        lambda T, N, K, H, q, k, w: w * 2 * T * H * (N + K)
    )
    assert not check.flash_bytes(  # each query head reads its own
        lambda T, N, K, H, q, k, w: right(T, N, K, H, q, k, w, heads=N)
    )
    assert not check.flash_bytes(  # keys without values
        lambda T, N, K, H, q, k, w: (right(T, N, K, H, q, k, w) + w * 2 * T * N * H) / 2
    )
    assert not check.flash_bytes(lambda *a: right(*a[:-1], 2))  # always bfloat16
    assert not check.flash_bytes(lambda *a: right(*a, again=1))  # a block for every tile


def test_tile_kind():
    def right(row, column, queries, keys, window):
        t0, t1 = row * queries, (row + 1) * queries - 1
        s0, s1 = column * keys, (column + 1) * keys - 1
        if s0 > t1 or t0 - s1 >= window:
            return "skip"
        return "whole" if s1 <= t0 and t1 - s0 < window else "cut"

    assert check.tile_kind(right)
    assert not check.tile_kind(lambda r, c, q, k, w: right(r, c, q, k, w + 1))  # one key too many
    assert not check.tile_kind(lambda r, c, q, k, w: right(r, c, q, k, 10**6))  # no window
    assert not check.tile_kind(  # never whole
        lambda *a: "cut" if right(*a) == "whole" else right(*a)
    )
    for skip, future, past, inside in itertools.product((0, 1), repeat=4):  # one off at a corner

        def near(row, column, queries, keys, window, off=(skip, future, past, inside)):
            least = row * queries - (column + 1) * keys + 1
            most = (row + 1) * queries - 1 - column * keys
            if most < off[1] or least >= window + off[0]:
                return "skip"
            return "whole" if least >= off[2] and most < window + off[3] else "cut"

        assert bool(check.tile_kind(near)) == (not skip + future + past + inside)
    assert not check.tile_kind(lambda *a: None)
