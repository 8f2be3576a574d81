import jax
import jax.numpy as jnp
import pytest

from llama_nb import check

needs_devices = pytest.mark.skipif(jax.device_count() < 4, reason="one device has it all")


def test_talk_bytes():
    def right(config, tokens, n, itemsize):
        array = tokens * config.embed_dim * itemsize
        return (2 * config.num_layers + 1) * 2 * (n - 1) / n * array

    assert check.talk_bytes(right)
    assert not check.talk_bytes(lambda c, t, n, i: right(c, t, n, i) / 2)  # half an all-reduce
    assert not check.talk_bytes(lambda c, t, n, i: right(c, t, n, 1))
    assert not check.talk_bytes(lambda c, t, n, i: 4 * c.num_layers * t * c.embed_dim * i)
    assert not check.talk_bytes(lambda *arguments: None)


@needs_devices
def test_split_argmax(capsys):
    def right(logits, ties=jax.lax.pmin):
        size = logits.shape[-1]
        best = logits.max(-1)
        tokens = logits.argmax(-1) + jax.lax.axis_index("model") * size
        highest = jax.lax.pmax(best, "model")
        return ties(jnp.where(best == highest, tokens, 1 << 30), "model")

    def local(logits):
        return logits.argmax(-1)

    def last(logits):
        size = logits.shape[-1]
        best = logits.max(-1)
        tokens = logits.argmax(-1) + jax.lax.axis_index("model") * size
        return jax.lax.pmax(jnp.where(best == jax.lax.pmax(best, "model"), tokens, -1), "model")

    def gathered(logits):
        return jax.lax.all_gather(logits, "model", axis=1, tiled=True).argmax(-1)

    assert check.split_argmax(right)
    assert not check.split_argmax(local)  # each its own
    assert "different results" in capsys.readouterr().out
    assert not check.split_argmax(lambda x: jax.lax.pmax(local(x), "model"))
    assert not check.split_argmax(last)  # the largest of equal tokens
    capsys.readouterr()
    assert not check.split_argmax(gathered)
    assert "all_gather" in capsys.readouterr().out
    assert not check.split_argmax(lambda x: right(x)[:, None])
    assert "(3, 1)" in capsys.readouterr().out
    assert not check.split_argmax(lambda x: None)
    assert "returned None" in capsys.readouterr().out


@needs_devices
def test_split_loss(capsys):
    def right(logits, targets, shift=True, mask=True):
        size = logits.shape[-1]
        top = jax.lax.pmax(logits.max(-1), "model") if shift else jnp.zeros(len(logits))
        z = jax.lax.psum(jnp.exp(logits - top[:, None]).sum(-1), "model")
        row = targets - jax.lax.axis_index("model") * size
        mine = (row >= 0) & (row < size)
        at = jnp.take_along_axis(logits, jnp.clip(row, 0, size - 1)[:, None], 1)[:, 0]
        at = jax.lax.psum(jnp.where(mine, at, 0) if mask else at, "model")
        return jnp.log(z) + top - at

    def own_top(logits, targets):
        top = logits.max(-1)
        z = jax.lax.psum(jnp.exp(logits - top[:, None]).sum(-1), "model")
        return right(logits, targets) * 0 + jnp.log(z)

    assert check.split_loss(right)
    assert not check.split_loss(lambda x, t: right(x, t, shift=False))  # overflows
    assert "NaN or infinity" in capsys.readouterr().out
    assert not check.split_loss(lambda x, t: right(x, t, mask=False))  # clipped rows count too
    assert not check.split_loss(own_top)
    assert not check.split_loss(lambda x, t: None)
