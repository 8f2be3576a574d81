import numpy as np

from llama_nb import check


def test_answer_mask(capsys):
    def right(ids, opening, end, keep_end=True, stop=True):
        mask, inside = [], False
        for place, token in enumerate(ids):
            mask.append(inside and (keep_end or token != end))
            if inside:
                inside = token != end if stop else True
            else:
                inside = ids[: place + 1][-len(opening) :] == opening
        return mask

    def first_only(ids, opening, end):
        mask = right(ids, opening, end)
        stop = ids.index(end, mask.index(True)) if True in mask else 0
        return [learn and place <= stop for place, learn in enumerate(mask)]

    def last_token(ids, opening, end):
        return right(ids, opening[-1:], end)

    def shifted(ids, opening, end):
        return [*right(ids, opening, end)[1:], False]

    assert check.answer_mask(right)
    assert not check.answer_mask(lambda *a: right(*a, keep_end=False))  # never learns to stop
    assert not check.answer_mask(lambda *a: right(*a, stop=False))  # learns the questions, too
    assert not check.answer_mask(first_only)
    assert not check.answer_mask(last_token)
    assert not check.answer_mask(shifted)
    capsys.readouterr()
    assert not check.answer_mask(lambda *a: None)
    assert capsys.readouterr().out == (
        "answer_mask: for one answer, it returned None; is the return statement missing?\n"
    )


def test_lora_count():
    def right(c, rank, targets, heads=None, layers=None):
        D, H, F = c.embed_dim, c.head_dim, c.ffn_dim
        sides = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), D + F)
        sides |= dict.fromkeys(("q_proj", "o_proj"), D + c.num_heads * H)
        sides |= dict.fromkeys(("k_proj", "v_proj"), D + (heads or c.num_kv_heads) * H)
        return (layers or c.num_layers) * rank * sum(sides[name] for name in targets)

    def square(c, rank, targets):
        return right(c, rank, targets) * (c.num_heads * c.head_dim == c.embed_dim)

    assert check.lora_count(right)
    assert not check.lora_count(lambda c, r, t: right(c, r, t, heads=c.num_heads))  # k, v as q
    assert not check.lora_count(lambda c, r, t: right(c, r, t, layers=1))
    assert not check.lora_count(lambda c, r, t: right(c, 1, t))
    assert not check.lora_count(square)  # takes N H for D


def test_merge_adapter():
    def right(w, a, b, alpha):
        return (w + alpha / len(b) * (a @ b)).astype(w.dtype)

    assert check.merge_adapter(right)
    assert not check.merge_adapter(lambda w, a, b, alpha: w + np.float32(alpha) * (a @ b))
    assert not check.merge_adapter(lambda w, a, b, alpha: w + a @ b)
    assert not check.merge_adapter(lambda w, a, b, alpha: (a @ b) * np.float32(alpha / len(b)))
    assert not check.merge_adapter(lambda *x: right(*x).astype(np.float64))
    assert not check.merge_adapter(lambda *x: right(*x).reshape(-1, x[0].shape[-1]))


def test_best_adapter():
    def right(change, rank):
        u, s, v = np.linalg.svd(change, full_matrices=False)
        return u[:, :rank] * s[:rank], v[:rank]

    def first_rows(change, rank):
        return np.eye(len(change))[:, :rank], change[:rank]

    def unscaled(change, rank):
        u, _, v = np.linalg.svd(change, full_matrices=False)
        return u[:, :rank], v[:rank]

    def turned(change, rank):
        a, b = right(change, rank)
        return b.T, a.T

    assert check.best_adapter(right)
    assert check.best_adapter(lambda change, rank: right(change.astype(np.float32), rank))
    assert not check.best_adapter(first_rows)
    assert not check.best_adapter(unscaled)
    assert not check.best_adapter(turned)
    assert not check.best_adapter(lambda change, rank: (change, np.eye(change.shape[1])))
    assert not check.best_adapter(lambda *a: None)
