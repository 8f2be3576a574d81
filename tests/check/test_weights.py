import json
import struct

from llama_nb import check


def test_to_halves(capsys):
    def right(matrix, heads):
        rows = matrix.reshape(heads, -1, 2, matrix.shape[1])
        return rows.swapaxes(1, 2).reshape(matrix.shape)

    def back(matrix, heads):
        rows = matrix.reshape(heads, 2, -1, matrix.shape[1])
        return rows.swapaxes(1, 2).reshape(matrix.shape)

    assert check.to_halves(right)
    capsys.readouterr()
    assert not check.to_halves(lambda matrix, heads: matrix)  # nothing done
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not check.to_halves(back)  # the way to Meta's order
    assert not check.to_halves(lambda m, heads: right(m, 1))  # across heads
    assert not check.to_halves(lambda m, heads: right(m, heads).reshape(heads, -1, m.shape[1]))


def test_piece_slices(capsys):
    def right(rows, pieces, start, stop):
        width = rows // pieces
        return [
            (number, max(start - number * width, 0), min(stop - number * width, width))
            for number in range(start // width, -(-stop // width))
        ]

    def touches_next(rows, pieces, start, stop):
        width = rows // pieces
        return [
            (number, max(start - number * width, 0), min(stop - number * width, width))
            for number in range(start // width, min(stop // width + 1, pieces))
        ]

    def in_the_whole(rows, pieces, start, stop):
        width = rows // pieces
        local = right(rows, pieces, start, stop)
        return [
            (number, low + number * width, high + number * width) for number, low, high in local
        ]

    assert check.piece_slices(right)
    capsys.readouterr()
    assert not check.piece_slices(touches_next)  # opens a file for no rows
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not check.piece_slices(in_the_whole)  # rows of the matrix, not of the file
    assert not check.piece_slices(lambda r, p, a, b: right(r, p, a, b)[:1])  # one file only
    assert not check.piece_slices(
        lambda r, p, a, b: [(n, x, y - 1) for n, x, y in right(r, p, a, b)]
    )


def test_find_tensor(capsys):
    def right(data, name, order="<", base=None):
        (length,) = struct.unpack(order + "Q", data[:8])
        item = json.loads(data[8 : 8 + length])[name]
        base = 8 + length if base is None else base
        begin, end = item["data_offsets"]
        return item["dtype"], item["shape"], base + begin, base + end

    assert check.find_tensor(right)
    capsys.readouterr()
    assert not check.find_tensor(lambda d, n: right(d, n, base=0))  # from the header's end
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not check.find_tensor(lambda d, n: right(d, n, base=8))  # the header forgotten
    assert not check.find_tensor(lambda d, n: right(d, n, order=">"))  # the other byte order
    assert not check.find_tensor(lambda d, n: (*right(d, n)[:2], 0, right(d, n)[3]))
    assert not check.find_tensor(lambda d, n: right(d, n)[2:])
