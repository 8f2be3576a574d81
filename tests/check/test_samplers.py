import numpy as np

from llama_nb import check


def _nucleus(p, limit, edge=0.0):
    order = np.argsort(-p)
    keep = np.zeros(len(p), bool)
    keep[order] = np.cumsum(p[order]) - p[order] * (1 - edge) < limit
    return keep


def test_nucleus():
    assert check.nucleus(_nucleus)
    assert not check.nucleus(
        lambda p, limit: _nucleus(p, limit, edge=1.0)
    )  # drops the crossing one
    assert not check.nucleus(lambda p, limit: p >= limit)  # a threshold
    assert not check.nucleus(lambda p, limit: np.sort(_nucleus(p, limit))[::-1])  # sorted places
    assert not check.nucleus(lambda p, limit: p * _nucleus(p, limit))  # probabilities


def _penalty(logits, used, penalty):
    logits, used = logits.copy(), np.unique(used)
    chosen = logits[used]
    logits[used] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits


def test_repetition_penalty(capsys):
    def dividing(logits, used, penalty):
        logits = logits.copy()
        logits[np.unique(used)] /= penalty
        return logits

    def each_time(logits, used, penalty):
        logits = logits.copy()
        for i in used:
            logits[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
        return logits

    def in_place(logits, used, penalty):
        logits[:] = _penalty(logits, used, penalty)
        return logits

    assert check.repetition_penalty(_penalty)
    assert not check.repetition_penalty(dividing)  # raises the negative ones
    assert not check.repetition_penalty(each_time)
    assert not check.repetition_penalty(in_place)
    assert "work on a copy" in capsys.readouterr().out


def test_tokens_read():
    def right(messages, answers, keep):
        if keep:
            return sum(messages) + len(messages) - 1
        turns = range(len(messages))
        return sum(sum(messages[: i + 1]) + sum(answers[:i]) for i in turns)

    assert check.tokens_read(right)
    assert not check.tokens_read(lambda m, a, keep: sum(m) if keep else right(m, a, keep))
    assert not check.tokens_read(lambda m, a, keep: right(m, a, True))
    assert not check.tokens_read(lambda m, a, keep: right(m, [0] * len(m), keep))  # no answers
