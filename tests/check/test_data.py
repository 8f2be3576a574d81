import hashlib
import math

import numpy as np

from llama_nb import check


def test_bits_per_byte():
    def right(batches):
        nats = sum((losses * weights).sum() for losses, weights, _ in batches)
        return nats / math.log(2) / sum(size for _, _, size in batches)

    def mean_of_ratios(batches):
        return np.mean([right([batch]) for batch in batches])

    def padding_counts(batches):
        return right([(losses, np.ones_like(losses), size) for losses, _, size in batches])

    def per_token(batches):
        nats = sum((losses * weights).sum() for losses, weights, _ in batches)
        return nats / math.log(2) / sum(weights.sum() for _, weights, _ in batches)

    assert check.bits_per_byte(right)
    assert not check.bits_per_byte(lambda batches: right(batches) * math.log(2))  # nats
    assert not check.bits_per_byte(mean_of_ratios)
    assert not check.bits_per_byte(padding_counts)
    assert not check.bits_per_byte(per_token)


def test_kept_out(capsys):
    def right(text, fraction, order="big"):
        plain = " ".join(text.lower().split())
        number = int.from_bytes(hashlib.sha256(plain.encode()).digest()[:4], order)
        return number < fraction * 2**32

    def as_it_is(text, fraction):
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:4], "big") < fraction * 2**32

    assert check.kept_out(right)
    assert not check.kept_out(as_it_is)  # near copies are apart
    assert "near copy" in capsys.readouterr().out
    assert not check.kept_out(lambda text, share: not right(text, share))  # the other side
    assert not check.kept_out(lambda text, share: right(text, share, "little"))
    assert not check.kept_out(lambda text, share: hash(text) % 2**32 < share * 2**32)  # per process


def test_first_fit():
    def right(lengths, T):
        room, rows = [], []
        for length in lengths:
            row = next((i for i, left in enumerate(room) if left >= length), len(room))
            if row == len(room):
                room.append(T)
            room[row] -= length
            rows.append(row)
        return rows

    def next_fit(lengths, T):
        row, left, rows = 0, T, []
        for length in lengths:
            if left < length:
                row, left = row + 1, T
            left -= length
            rows.append(row)
        return rows

    def best_fit(lengths, T):
        room, rows = [], []
        for length in lengths:
            fits = [i for i, left in enumerate(room) if left >= length]
            row = min(fits, key=lambda i: room[i]) if fits else len(room)
            if row == len(room):
                room.append(T)
            room[row] -= length
            rows.append(row)
        return rows

    def never_full(lengths, T):
        return right(lengths, T - 1)

    assert check.first_fit(right)
    assert not check.first_fit(next_fit)  # never looks back
    assert not check.first_fit(best_fit)
    assert not check.first_fit(never_full)
    assert not check.first_fit(lambda lengths, T: [int(r) for r in np.cumsum(lengths) // T])  # cuts
