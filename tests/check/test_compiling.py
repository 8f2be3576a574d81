import math
import re

from llama_nb import check


def test_talk():
    def right(text, kind, start="(?:-start)?", width=None):
        width = width or {"bf16": 2, "f32": 4}
        found = re.findall(rf"= (\w+)\[([\d,]*)\]\S* {kind}{start}\(", text)
        sizes = [width[t] * math.prod(int(n) for n in s.split(",") if n) for t, s in found]
        return len(found), sum(sizes)

    assert check.talk(right)
    assert not check.talk(lambda text, kind: right(text, kind, "(?:-start|-done)?"))  # twice
    assert not check.talk(lambda text, kind: right(text, kind, ""))  # not those in the background
    assert not check.talk(lambda text, kind: right(text, kind, width={"bf16": 2, "f32": 2}))
    assert not check.talk(lambda text, kind: (text.count(kind), right(text, kind)[1]))
    assert not check.talk(lambda text, kind: right(text, kind)[0])
    assert not check.talk(lambda text, kind: None)


def test_deeper(capsys):
    def right(low, cost_low, high, cost_high, layers):
        return cost_low + (cost_high - cost_low) / (high - low) * (layers - low)

    assert check.deeper(right)
    assert not check.deeper(lambda low, a, high, b, layers: b / high * layers)  # head and all
    assert not check.deeper(lambda low, a, high, b, layers: a + (b - a) * (layers - low))
    capsys.readouterr()
    assert not check.deeper(lambda *arguments: None)
    assert "returned None" in capsys.readouterr().out


def test_finish():
    def right(schedule, bandwidth, queue=True, late=True):
        core = memory = 0.0
        arrival = {}
        for kind, *what in schedule:
            if kind == "work":
                core += what[0]
            elif kind == "start":
                begin = max(memory if queue else 0, core if late else 0)
                memory = arrival[what[0]] = begin + what[1] / bandwidth
            else:
                core = max(core, arrival[what[0]])
        return core

    assert check.finish(right)
    assert not check.finish(lambda s, b: right(s, b, queue=False))  # copies all at once
    assert not check.finish(lambda s, b: right(s, b, late=False))  # from the beginning
    assert not check.finish(lambda s, b: sum(x[1] for x in s if x[0] == "work"))
    assert not check.finish(lambda s, b: sum(x[1] if x[0] == "work" else x[2] / b
                                             for x in s if x[0] != "done"))  # fmt: skip
    assert not check.finish(lambda s, b: None)
