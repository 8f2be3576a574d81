from llama_nb import check


def test_product_intensity():
    def right(tokens, inputs, outputs, itemsize):
        moved = tokens * inputs + inputs * outputs + tokens * outputs
        return 2 * tokens * inputs * outputs / (itemsize * moved)

    assert check.product_intensity(right)
    assert not check.product_intensity(lambda t, i, o, b: right(t, i, o, b) / 2)  # one per pair
    assert not check.product_intensity(lambda t, i, o, b: 2 * t / b)  # weights only
    assert not check.product_intensity(lambda t, i, o, b: right(t, i, o, 2))  # always bfloat16


def test_largest_batch():
    def right(config, chip, context, itemsize):
        left = chip.capacity - config.param_count() * itemsize
        return max(0, int(left // (context * config.cache_bytes_per_token(itemsize))))

    assert check.largest_batch(right)
    assert not check.largest_batch(  # no room for the weights
        lambda c, chip, s, b: int(chip.capacity // (s * c.cache_bytes_per_token(b)))
    )
    assert not check.largest_batch(  # negative where the weights don't fit
        lambda c, chip, s, b: int(
            (chip.capacity - c.param_count() * b) // (s * c.cache_bytes_per_token(b))
        )
    )
    assert not check.largest_batch(  # N instead of K heads
        lambda c, chip, s, b: right(c, chip, s, b) // c.group_size
    )


def test_decode_floor():
    def right(config, chip, chips, batch, context, itemsize):
        read = config.param_count()
        if not config.tied:
            read -= config.vocab_size * config.embed_dim
        read += batch * context * config.cache_bytes_per_token(1)
        return read * itemsize / chips / chip.bandwidth

    assert check.decode_floor(right)
    assert not check.decode_floor(  # reads the whole embedding
        lambda c, chip, n, b, s, w: (
            right(c, chip, n, b, s, w) + c.vocab_size * c.embed_dim * w / n / chip.bandwidth
        )
    )
    assert not check.decode_floor(lambda c, chip, n, b, s, w: right(c, chip, n, b, 0, w))  # cache
    assert not check.decode_floor(lambda c, chip, n, b, s, w: right(c, chip, 1, b, s, w))  # chips
    assert not check.decode_floor(lambda *arguments: None)
