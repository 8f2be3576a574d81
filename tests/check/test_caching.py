import numpy as np

from llama_nb import check


def test_left_pad():
    def right(prompts, pad):
        longest = max(map(len, prompts))
        starts = [longest - len(prompt) for prompt in prompts]
        return [[pad] * s + p for s, p in zip(starts, prompts, strict=True)], starts

    def on_the_right(prompts, pad):
        longest = max(map(len, prompts))
        return [p + [pad] * (longest - len(p)) for p in prompts], [0] * len(prompts)

    assert check.left_pad(right)
    assert not check.left_pad(on_the_right)
    assert not check.left_pad(lambda p, pad: right(p, 0))  # another pad
    assert not check.left_pad(lambda p, pad: (right(p, pad)[0], [len(x) for x in p]))  # lengths
    assert not check.left_pad(lambda p, pad: right(p, pad)[0])


def test_cache_view():
    def right(starts, length, T, S, first=None, strict=False):
        slot, keys = length + np.arange(T), np.arange(S)
        positions = np.maximum(slot - starts[:, None], 0)
        edge = keys < slot[:, None] if strict else keys <= slot[:, None]
        first = starts if first is None else first
        return positions, edge & (keys >= first[:, None, None])

    assert check.cache_view(right)
    assert not check.cache_view(lambda s, n, T, S: right(s, n, T, S, strict=True))  # not itself
    assert not check.cache_view(lambda s, n, T, S: right(s, n, T, S, first=0 * s))  # sees padding
    assert not check.cache_view(lambda s, n, T, S: right(s, 0, T, S))  # forgets the past
    assert not check.cache_view(  # positions are slots
        lambda s, n, T, S: (right(0 * s, n, T, S)[0], right(s, n, T, S)[1])
    )


def test_bucket():
    def right(size, smallest):
        power = smallest
        while power < size:
            power *= 2
        return power * 3 // 4 if power > smallest and size <= power * 3 // 4 else power

    def powers(size, smallest):
        return max(smallest, 1 << (size - 1).bit_length())

    assert check.bucket(right)
    assert not check.bucket(powers)  # no three quarters
    assert not check.bucket(
        lambda n, low: powers(n, low) * 3 // 4
    )  # too small, or below `smallest`
    assert not check.bucket(lambda n, low: -(-n // low) * low)  # multiples of the smallest
