import jax
import jax.numpy as jnp
import numpy as np

from llama_nb import check


def test_pad_rows():
    def right(tokens, devices):
        extra = ((0, -len(tokens) % devices), (0, 0))
        mask = np.ones((len(tokens), tokens.shape[1] - 1), np.float32)
        return np.pad(tokens, extra), np.pad(mask, extra)

    def dropped(tokens, devices):
        kept = tokens[: len(tokens) // devices * devices]
        return kept, np.ones((len(kept), tokens.shape[1] - 1), np.float32)

    def always(tokens, devices):  # a whole round more where it divides already
        extra = ((0, devices - len(tokens) % devices), (0, 0))
        return tuple(np.pad(part, extra) for part in right(tokens, 1))

    assert check.pad_rows(right)
    assert not check.pad_rows(dropped)
    assert not check.pad_rows(always)
    assert not check.pad_rows(lambda t, d: (right(t, d)[0], np.ones_like(right(t, d)[1])))
    assert not check.pad_rows(lambda t, d: right(t, d)[0])


def test_token_mean(capsys):
    def right(losses, mask):
        return jax.lax.psum((losses * mask).sum(), "data") / jax.lax.psum(mask.sum(), "data")

    assert check.token_mean(right)
    capsys.readouterr()
    assert not check.token_mean(  # a mean of means
        lambda losses, mask: jax.lax.pmean((losses * mask).sum() / mask.sum(), "data")
    )
    assert "1, 9, 30, 12 tokens" in capsys.readouterr().out  # right where counts are equal
    assert not check.token_mean(lambda losses, mask: (losses * mask).sum() / mask.sum())  # its own
    assert not check.token_mean(lambda losses, mask: jax.lax.pmean(losses.mean(), "data"))
    assert not check.token_mean(  # divided by its own count
        lambda losses, mask: jax.lax.psum((losses * mask).sum(), "data") / mask.sum()
    )
    capsys.readouterr()
    assert not check.token_mean(lambda losses, mask: None)
    assert "returned None" in capsys.readouterr().out


def test_accumulate():
    def right(gradient, params, parts):
        grads, counts = zip(*(gradient(params, part) for part in parts), strict=True)
        return jax.tree.map(lambda *leaves: sum(leaves) / sum(counts), *grads)

    def mean_of_means(gradient, params, parts):
        means = []
        for part in parts:
            grads, count = gradient(params, part)
            means.append(jax.tree.map(lambda leaf, count=count: leaf / count, grads))
        return jax.tree.map(lambda *leaves: sum(leaves) / len(parts), *means)

    assert check.accumulate(right)
    assert not check.accumulate(mean_of_means)
    assert not check.accumulate(lambda g, p, parts: right(g, p, parts[-1:]))  # the last only
    assert not check.accumulate(  # a sum, never divided
        lambda g, p, parts: jax.tree.map(lambda *x: sum(x), *(g(p, part)[0] for part in parts))
    )
    assert not check.accumulate(  # divided by the number of parts
        lambda g, p, parts: jax.tree.map(
            lambda *x: sum(x) / len(parts), *(g(p, part)[0] for part in parts)
        )
    )
    assert not check.accumulate(lambda g, p, parts: jax.tree.map(jnp.zeros_like, p))
    assert not check.accumulate(lambda *arguments: None)


def test_exposed_seconds():
    def right(params, tokens, chips, flops, bandwidth, itemsize):
        sending = 2 * (chips - 1) / chips * params * itemsize / bandwidth
        return max(0.0, sending - 4 * params * tokens / chips / flops)

    assert check.exposed_seconds(right)
    assert not check.exposed_seconds(lambda p, t, n, *rest: right(p, t * n, n, *rest))  # all tokens
    assert not check.exposed_seconds(lambda p, t, n, f, w, b: right(p, t, n, f, w, 2))  # bfloat16
    assert not check.exposed_seconds(lambda p, t, n, f, w, b: right(p, t, n, f, 2 * w, b))  # once
    assert not check.exposed_seconds(  # negative where hidden
        lambda p, t, n, f, w, b: 2 * (n - 1) / n * p * b / w - 4 * p * t / n / f
    )
    assert not check.exposed_seconds(lambda *arguments: None)
