import codecs

from llama_nb import check


def test_bytes_per_token():
    def right(encode, texts):
        return sum(len(t.encode()) for t in texts) / sum(len(encode(t)) for t in texts)

    assert check.bytes_per_token(right)
    assert not check.bytes_per_token(  # characters
        lambda encode, texts: sum(map(len, texts)) / sum(len(encode(t)) for t in texts)
    )
    assert not check.bytes_per_token(  # a mean of ratios
        lambda encode, texts: sum(right(encode, [t]) for t in texts) / len(texts)
    )
    assert not check.bytes_per_token(lambda encode, texts: 1 / right(encode, texts))
    assert not check.bytes_per_token(lambda encode, texts: None)


def test_stream_text():
    def right(pieces):
        decoder = codecs.getincrementaldecoder("utf-8")()
        return [decoder.decode(piece) for piece in pieces]

    assert check.stream_text(right)
    assert not check.stream_text(lambda p: [x.decode(errors="replace") for x in p])
    assert not check.stream_text(lambda p: [x.decode(errors="ignore") for x in p])
    assert not check.stream_text(lambda p: [x.decode() for x in p])  # raises
    assert not check.stream_text(lambda p: [b"".join(p).decode()])  # all at the end

    def hold(pieces):  # holds back a whole piece, also the characters in it that are complete
        held, out = b"", []
        for piece in pieces:
            held += piece
            try:
                out.append(held.decode())
                held = b""
            except UnicodeDecodeError:
                out.append("")
        return out

    assert not check.stream_text(hold)


def test_llama3_chat(capsys):
    def build(encode, special, messages, *, bos=1, strip=True, opening=True, gap="\n\n"):
        def header(role):
            start, end = special["<|start_header_id|>"], special["<|end_header_id|>"]
            return [start, *encode(role), end, *encode(gap)]

        ids = [special["<|begin_of_text|>"]] * bos
        for m in messages:
            content = m["content"].strip() if strip else m["content"]
            ids += [*header(m["role"]), *encode(content), special["<|eot_id|>"]]
        return ids + (header("assistant") if opening else [])

    assert check.llama3_chat(build)
    for wrong in ({"bos": 0}, {"bos": 2}, {"strip": False}, {"opening": False}, {"gap": "\n"}):
        assert not check.llama3_chat(lambda *a, wrong=wrong: build(*a, **wrong))
    capsys.readouterr()
    assert not check.llama3_chat(
        lambda encode, special, m: build(lambda t: encode(t, allow_special=True), special, m)
    )
    assert "a special token in the text" in capsys.readouterr().out
