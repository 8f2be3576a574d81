import math

from llama_nb import check


def test_zero_bytes(capsys):
    def right(params, devices, stage, split=(0, 8, 12, 16)):
        return params * (16 - split[stage]) + params * split[stage] / devices

    assert check.zero_bytes(right)
    assert not check.zero_bytes(lambda p, n, s: right(p, n, s, (0, 4, 8, 12)))  # one moment
    assert not check.zero_bytes(lambda p, n, s: right(p, n, s, (0, 4, 8, 16)))  # weights first
    assert not check.zero_bytes(lambda p, n, s: 16 * p / n)
    capsys.readouterr()
    assert not check.zero_bytes(lambda p, n, s: right(p, n, s) / 2)
    assert capsys.readouterr().out == (
        "zero_bytes: for 1,000,000 parameters on 8 devices, stage 0, "
        "values differ: 8e+06 instead of 1.6e+07.\n"
    )
    assert not check.zero_bytes(lambda *arguments: None)


def test_best_mesh():
    def right(n, B, D, F, passes=3, sums=4):
        def numbers(rows):
            columns = n // rows
            gathers = passes * (rows - 1) / rows * 2 * D * F / columns
            return gathers + sums * (columns - 1) / columns * (B / rows) * D

        rows = min((2**k for k in range(n.bit_length())), key=numbers)
        return rows, n // rows

    def extremes(n, B, D, F):
        return (1, n) if B < 1.5 * F else (n, 1)

    def turned(*arguments):
        return right(*arguments)[::-1]

    assert check.best_mesh(right)
    assert not check.best_mesh(extremes)  # no mixtures
    assert not check.best_mesh(turned)
    assert not check.best_mesh(lambda *a: right(*a, sums=1))  # an all-reduce counted as a gather
    assert not check.best_mesh(lambda *a: None)


def test_microbatches():
    def right(p, idle):
        return math.ceil((p - 1) * (1 - idle) / idle)

    assert check.microbatches(right)
    assert not check.microbatches(lambda p, idle: math.ceil((p - 1) / idle))  # forgets the bubble
    assert not check.microbatches(lambda p, idle: int((p - 1) * (1 - idle) / idle))  # rounds down
    assert not check.microbatches(lambda p, idle: math.ceil(p * (1 - idle) / idle))
    assert not check.microbatches(lambda p, idle: None)
