"""Documents, tokens, rows and batches: what goes in comes out, in the same order every time."""

import itertools

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_nb import assets, data
from llama_nb.data import corpus, tokens
from llama_nb.errors import DownloadError, InputError, MissingFileError
from llama_nb.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("quiet_datasets")


def stored(lengths):
    """Return documents whose tokens say whose they are: 1000 times the document, plus the place."""
    return datasets.Dataset.from_dict(
        {"ids": [(1000 * i + np.arange(n)).tolist() for i, n in enumerate(lengths)]}
    )


lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(lengths, st.integers(1, 30))
def test_packing_loses_nothing(sizes, T):
    rows = list(data.pack((np.array(row["ids"]) for row in stored(sizes)), T))
    assert all(row.full for row in rows[:-1])
    pairs = []
    for row in rows:
        found = row.arrays
        real = found["segments"] > 0
        assert (found["weights"] == real).all()
        pairs += zip(found["tokens"][real], found["targets"][real], strict=True)
        for segment in set(found["segments"][real]):
            piece = found["segments"] == segment
            assert len(set(found["tokens"][piece] // 1000)) == 1  # One document.
            np.testing.assert_array_equal(found["positions"][piece], np.arange(piece.sum()))
    expected = [(1000 * i + t, 1000 * i + t + 1) for i, n in enumerate(sizes) for t in range(n - 1)]
    assert pairs == expected


def take(source, count):
    return [next(source) for _ in range(count)]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for name in ("tokens", "targets", "segments", "positions", "weights"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(0, 12), st.booleans(), st.integers(0, 3))
def test_batches_go_on_where_they_stopped(sizes, stop, streaming, seed):
    documents = stored([50, *sizes])
    if streaming:
        documents = documents.to_iterable_dataset()
    options = {"batch": 2, "T": 7, "seed": seed, "buffer": 3}
    whole = take(data.Batches(documents, **options), stop + 4)
    begun = data.Batches(documents, **options)
    same(take(begun, stop), whole[:stop])
    same(take(data.Batches(documents, **options, place=begun.place), 4), whole[stop:])


@pytest.mark.parametrize("streaming", [False, True])
def test_an_epoch_has_every_document_once_in_an_order_of_its_own(streaming):
    documents = stored([11] * 12)  # Ten tokens to predict, each.
    if streaming:
        documents = documents.to_iterable_dataset()
    source = data.Batches(documents, 1, 10, seed=3, buffer=5)
    epochs = [[int(b.tokens[0, 0]) // 1000 for b in take(source, 12)] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1] != list(range(12)) != epochs[0]
    other = data.Batches(documents, 1, 10, seed=4, buffer=5)
    assert [int(b.tokens[0, 0]) // 1000 for b in take(other, 12)] != epochs[0]


def test_many_rows_of_one_document():
    batch = take(data.Batches(stored([5001]), 1, 2), 2500)[-1]
    np.testing.assert_array_equal(batch.tokens, [[4998, 4999]])


def test_what_is_too_small_is_refused():
    with pytest.raises(InputError, match="9 tokens to learn, less than a batch of 2 x 5"):
        next(data.Batches(stored([10, 1, 0]), 2, 5))
    with pytest.raises(InputError, match="a batch of 0 x 5"):
        data.Batches(stored([10]), 0, 5)
    with pytest.raises(InputError, match="rows of 0 tokens"):
        next(data.pack(iter([np.arange(3)]), 0))


def test_sides_are_apart_and_the_same_in_any_order():
    texts = [f"document {i}" for i in range(400)]
    found = [
        tuple(
            [row["text"] for row in side]
            for side in data.split(datasets.Dataset.from_dict({"text": t}), 0.1)
        )
        for t in (texts, texts[::-1])
    ]
    (learn, validate), (again, validate_again) = found
    assert sorted(learn + validate) == sorted(texts)
    assert set(learn) == set(again) and set(validate) == set(validate_again)
    assert 20 < len(validate) < 60
    for fraction in (0.0, 1.0):
        with pytest.raises(InputError, match="must be within 0 and 1"):
            data.split(datasets.Dataset.from_dict({"text": texts}), fraction)
    with pytest.raises(InputError, match="no document left to validate with"):
        data.split(datasets.Dataset.from_dict({"text": ["one"]}), 0.001)


def test_tokens_have_their_ends():
    try:
        cutter = Tokenizer.from_llama3(assets.fetch(assets.LLAMA3_TOKENIZER))
    except DownloadError as error:
        pytest.skip(str(error))
    text = "Ein Text.\n"
    found = data.tokenize(datasets.Dataset.from_dict({"text": [text, "x"]}), cutter)
    ids = found[0]["ids"]
    assert ids == tokens.ids_of(text, cutter)
    assert ids[0] == cutter.bos_id and ids[-1] == cutter.eos_id
    assert cutter.decode(ids[1:-1]) == text
    assert found["bytes"][:] == [10, 1]


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("first\n\nand on")
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "c.bin").write_bytes(b"\0")
    assert data.documents(tmp_path)["text"][:] == ["first\n\nand on", "second"]
    assert data.documents(tmp_path / "a.txt")["text"][:] == ["first\n\nand on"]
    lines = tmp_path / "d.jsonl"
    lines.write_text('{"body": "one", "n": 1}\n{"body": " ", "n": 2}\n{"body": "two", "n": 3}\n')
    assert data.documents(lines, column="body")["text"][:] == ["one", "two"]
    streamed = data.documents(lines, column="body", streaming=True)
    assert [row["text"] for row in streamed] == ["one", "two"]
    with pytest.raises(InputError, match="has no column 'text'; it has: body, n"):
        data.documents(lines)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="has no text to learn from"):
        data.documents(tmp_path / "empty.txt")
    with pytest.raises(MissingFileError, match="there is no file"):
        data.documents(tmp_path / "none.txt")
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="holds no text"):
        data.documents(tmp_path / "sub")
    with pytest.raises(InputError, match="known: python-docs"):
        data.documents("nonsense")


def test_docstrings():
    code = '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Inner."""\n'
    assert list(corpus._docstrings(code)) == ["Module.", "Class.", "Inner."]


@pytest.mark.slow
def test_this_machines_python():
    found = data.documents("python-docs")
    assert any(text.startswith('The "assert" statement') for text in found["text"][:])
    assert sum(map(len, found["text"][:])) > 2_000_000
    streamed = data.documents("python-docs", streaming=True)
    first = [row["text"] for row in itertools.islice(streamed, 3)]
    assert first == found["text"][:3]


@pytest.mark.parametrize("streaming", [False, True])
def test_pieces_predict_every_token_once(streaming):
    """Cut or whole, the same pairs of a token and the next one are learnt."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 9, n).tolist() for n in (1, 2, 5, 6, 7, 11, 12, 30)]
    found = datasets.Dataset.from_dict({"ids": ids, "bytes": [1] * len(ids)})
    cut = data.pieces(found.to_iterable_dataset() if streaming else found, 5)
    parts = [row["ids"] for row in cut]
    assert all(2 <= len(part) <= 6 for part in parts)
    learnt = [pair for part in parts for pair in itertools.pairwise(part)]
    assert learnt == [pair for document in ids for pair in itertools.pairwise(document)]
