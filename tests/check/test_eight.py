from llama_nb import check


def test_longest_talk(capsys):
    def right(config, room, weight, cache):
        left = room - config.param_count() * weight
        return min(config.context, max(0, int(left // config.cache_bytes_per_token(cache))))

    assert check.longest_talk(right)
    assert not check.longest_talk(lambda c, r, w, k: right(c, r, w, 2))
    assert not check.longest_talk(
        lambda c, r, w, k: int((r - c.param_count() * w) // c.cache_bytes_per_token(k))
    )
    capsys.readouterr()
    assert not check.longest_talk(lambda *a: None)
    said = capsys.readouterr().out
    assert "returned None" in said and len(said.splitlines()) == 1


def test_host_peak():
    def right(sizes, stored, kept):
        return max(kept * sum(sizes[: i + 1]) + stored * n for i, n in enumerate(sizes))

    assert check.host_peak(right)
    assert not check.host_peak(lambda s, r, k: r * sum(s) + k * sum(s))  # all at once
    assert not check.host_peak(lambda s, r, k: k * sum(s) + r * max(s))  # only if the last is it
    assert not check.host_peak(lambda s, r, k: k * sum(s))
    assert not check.host_peak(lambda *a: None)


def test_whole_step():
    def right(first, second, wanted):
        layer = (second[1] - first[1]) / (second[0] - first[0])
        return first[1] + (wanted - first[0]) * layer

    assert check.whole_step(right)
    assert not check.whole_step(lambda a, b, n: n * b[1] / b[0])  # the head counted every time
    assert not check.whole_step(lambda a, b, n: n * (b[1] - a[1]) / (b[0] - a[0]))
    assert not check.whole_step(lambda *a: None)
