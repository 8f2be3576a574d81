from llama_nb import check


def test_crossing_bytes(capsys):
    def right(groups, per_host, size, last=0):
        total = 0
        for ring in groups:
            for i in range(len(ring) - last):
                there = ring[(i + 1) % len(ring)] // per_host
                if ring[i] // per_host != there:
                    total += 2 * (len(ring) - 1) / len(ring) * size
        return total

    def members(groups, per_host, size):
        across = [g for g in groups if len({i // per_host for i in g}) > 1]
        return sum(2 * (len(g) - 1) * size for g in across)

    def first_length(groups, per_host, size):
        n = len(groups[0])
        hosts = [[i // per_host for i in ring] for ring in groups]
        crossings = sum(ring[i - 1] != ring[i] for ring in hosts for i in range(len(ring)))
        return crossings * 2 * (n - 1) / n * size

    assert check.crossing_bytes(right)
    assert not check.crossing_bytes(first_length)  # rings may have unequal lengths
    assert not check.crossing_bytes(lambda *given: right(*given, last=1))  # no way back
    assert not check.crossing_bytes(members)  # inside counted, too
    assert not check.crossing_bytes(lambda g, h, s: right(g, h, s) / 2)
    capsys.readouterr()
    assert not check.crossing_bytes(lambda groups, per_host, size: size)
    assert capsys.readouterr().out == (
        "crossing_bytes: for 2 rings like [0, 1, 2, 3], 4 devices a host, 1024 bytes, "
        "values differ: 1024 instead of 0.\n"
    )
    assert not check.crossing_bytes(lambda *given: None)


def test_who_waits(capsys):
    def right(programs):
        done = 0
        while all(p[done:] for p in programs) and len({p[done] for p in programs}) == 1:
            done += 1
        return [host for host, p in enumerate(programs) if p[done:]]

    def by_length(programs):
        return [h for h, p in enumerate(programs) if len(p) > min(map(len, programs))]

    assert check.who_waits(right)
    assert not check.who_waits(by_length)  # as many, but others
    assert not check.who_waits(lambda ps: [h for h, p in enumerate(ps) if p != ps[0]])
    assert not check.who_waits(lambda ps: [h for h, p in enumerate(ps) if p])
    capsys.readouterr()
    assert not check.who_waits(lambda programs: None)
    assert "returned None" in capsys.readouterr().out
    assert not check.who_waits(lambda programs: programs[0][5])
    assert "raised IndexError" in capsys.readouterr().out
