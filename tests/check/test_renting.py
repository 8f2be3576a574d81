from llama_nb import check


def test_open_ports(capsys):
    def right(worker, controller, coordinator, notebook):
        first, last = controller
        return [22] if worker else sorted([22, coordinator, *range(first, last + 1)])

    assert check.open_ports(right)
    assert not check.open_ports(lambda w, c, *rest: right(0, c, *rest))  # engines are not called
    assert not check.open_ports(lambda w, c, p, n: sorted([*right(w, c, p, n), n]))  # the notebook
    assert not check.open_ports(lambda w, c, p, n: right(w, (c[0], c[1] - 1), p, n))
    capsys.readouterr()
    assert not check.open_ports(lambda *a: None)
    said = capsys.readouterr().out
    assert "returned None" in said and len(said.splitlines()) == 1


def test_host_bytes():
    def right(hosts, parts, size, kind=set):
        share = len(hosts) // parts
        mine = [[p // share for p, h in enumerate(hosts) if h == n] for n in range(max(hosts) + 1)]
        return [len(kind(found)) * size // parts for found in mine]

    assert check.host_bytes(right)
    assert not check.host_bytes(lambda *a: right(*a, kind=list))  # a shared part counted twice
    assert not check.host_bytes(lambda h, p, s: [s // (max(h) + 1)] * (max(h) + 1))  # even shares
    assert not check.host_bytes(lambda h, p, s: right(h, len(h), s))  # no shared parts
    assert not check.host_bytes(lambda *a: None)
