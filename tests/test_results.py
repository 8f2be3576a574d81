"""Results are found in the checkout, or else where the package says that it comes from."""

import io
import json
import urllib.error

import pytest

from book import strip
from llama_nb import results
from llama_nb.errors import DownloadError, MissingFileError


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Pretend that the package was installed without its checkout, as on Colab."""
    monkeypatch.setattr(results, "__file__", str(tmp_path / "site/llama_nb/results.py"))
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    return tmp_path


def test_a_result_of_the_checkout():
    path = strip.ROOT / "benchmarks/results/train_small.json"
    assert results.recorded("train_small") == json.loads(path.read_text())


def test_a_name_that_is_none_is_answered_with_those_that_are():
    with pytest.raises(MissingFileError, match=r"no result 'moon' in .*results; known: atlas, "):
        results.recorded("moon")


def test_a_notebook_finds_the_checkout_that_it_lies_in(elsewhere):
    folder = elsewhere / "benchmarks/results"
    folder.mkdir(parents=True)
    (folder / "speed.json").write_text('{"tokens": 3}')
    assert results.recorded("speed") == {"tokens": 3}


@pytest.mark.parametrize("name", ["speed", "compiler/19"])
def test_without_a_checkout_it_is_read_from_the_repository(elsewhere, monkeypatch, name):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(b'{"tokens": 4}')

    monkeypatch.setattr(results.urllib.request, "urlopen", answer)
    assert results.recorded(name) == {"tokens": 4}
    home, branch = strip.repository()
    raw = home.replace("github.com", "raw.githubusercontent.com")
    assert asked == [f"{raw}/{branch}/benchmarks/results/{name}.json"]


@pytest.mark.parametrize(
    ("problem", "error", "says"),
    [
        (urllib.error.HTTPError("", 404, "Not Found", {}, None), MissingFileError, "no result"),
        (urllib.error.HTTPError("", 503, "Busy", {}, None), DownloadError, "could not be read"),
        (urllib.error.URLError("no route"), DownloadError, "network"),
    ],
    ids=["missing", "refused", "unreachable"],
)
def test_a_result_that_does_not_come(elsewhere, monkeypatch, problem, error, says):
    def answer(url, timeout):
        raise problem

    monkeypatch.setattr(results.urllib.request, "urlopen", answer)
    with pytest.raises(error, match=says):
        results.recorded("speed")
