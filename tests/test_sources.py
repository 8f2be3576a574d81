"""Which weights are chosen, and that they open."""

import shutil
from unittest import mock

import pytest

from llama_nb import assets, download, presets, sources
from llama_nb.checkpoint.noise import Noise
from llama_nb.errors import DownloadError, InputError
from llama_nb.sources import GATED, Source, choose, open_source

UNGATED = download.UNGATED


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch):
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    monkeypatch.setattr(download, "cached", lambda repo: None)


def hub(**answers):
    """Return what answers for the two repositories, and notes which were asked about."""
    asked = []

    def access(repo):
        asked.append(repo)
        return answers["gated" if repo == GATED else "ungated"]

    access.asked = asked
    return access


@pytest.mark.parametrize(
    ("token", "gated", "ungated", "kind", "name", "said"),
    [
        (False, "open", "open", "hub", UNGATED, "anyone may download it"),
        (True, "open", "open", "hub", GATED, "Your token opens"),
        (True, "refused", "open", "hub", UNGATED, "anyone may download it"),
        (True, "unreachable", "open", "random", "llama3.1-8b", "can't be reached"),
        (False, "open", "unreachable", "random", "llama3.1-8b", "can't be reached"),
        (True, "refused", "refused", "random", "llama3.1-8b", "refuses"),
    ],
)
def test_what_the_hub_offers(token, gated, ungated, kind, name, said):
    access = hub(gated=gated, ungated=ungated)
    source = choose(access=access, token=token)
    assert (source.kind, source.name) == (kind, name) and said in source.why
    assert (GATED in access.asked) == token  # without a token nobody asks for what is gated
    if gated == "unreachable":
        assert access.asked == [GATED]  # nor waits twice for a network that is not there


def test_without_the_hub_its_cache_serves(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "cached", lambda repo: tmp_path if repo == UNGATED else None)
    source = choose(access=lambda repo: "unreachable", token=True)
    assert (source.kind, source.name) == ("hub", UNGATED) and "cache" in source.why


def never(repo):
    raise AssertionError("the Hub was asked")


@pytest.mark.parametrize(
    ("wanted", "kind", "name"),
    [
        ("small", "here", "smollm2-135m"),
        ("random", "random", "llama3.1-8b"),
        ("owner/name", "hub", "owner/name"),
    ],
)
def test_what_is_wanted_comes_first(monkeypatch, wanted, kind, name):
    source = choose(wanted, never)
    assert (source.kind, source.name) == (kind, name) and wanted in source.why
    monkeypatch.setenv(sources.VARIABLE, wanted)
    assert choose(access=never) == source


def test_a_folder_opens(tmp_path, write_model):
    tiny = presets.get("tiny")
    write_model(tmp_path / "model", tiny)
    shutil.copy(assets.fetch(assets.LLAMA3_TOKENIZER), tmp_path / "model")
    source = choose(str(tmp_path / "model"), never)
    assert source.kind == "here"
    checkpoint, tokenizer = open_source(source)
    assert checkpoint.config == tiny and tokenizer.chat_format == "llama3"


@pytest.mark.parametrize("wanted", ["/no/such/folder", "nothing", "a/b/c"])
def test_what_is_nowhere_is_said(wanted):
    with pytest.raises(InputError, match="is no file or folder here; name one"):
        choose(wanted, never)


def test_hub_access_tells_a_refusal_from_silence(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    response = mock.MagicMock()
    for error, answer in (
        (errors.GatedRepoError("no", response=response), "refused"),
        (errors.RepositoryNotFoundError("no", response=response), "refused"),
        (OSError("no route"), "unreachable"),
        (None, "open"),
    ):

        def auth_check(repo, error=error):
            if error:
                raise error

        monkeypatch.setattr(huggingface_hub, "auth_check", auth_check)
        assert sources.hub_access("owner/name") == answer


def test_a_download_that_fails_leaves_what_is_cached(monkeypatch, tmp_path, write_model):
    write_model(tmp_path / "model", presets.get("tiny"))
    shutil.copy(assets.fetch(assets.LLAMA3_TOKENIZER), tmp_path / "model")

    def fail(repo):
        raise DownloadError("no network.")

    monkeypatch.setattr(download, "download", fail)
    source = Source("hub", "owner/name", "")
    with pytest.raises(DownloadError):
        open_source(source)
    monkeypatch.setattr(download, "cached", lambda repo: tmp_path / "model")
    assert open_source(source)[0].config == presets.get("tiny")


def test_random_weights_have_the_geometry_and_the_tokenizer_of_llama_3():
    checkpoint, tokenizer = open_source(Source("random", "llama3.1-8b", ""))
    assert isinstance(checkpoint, Noise) and checkpoint.config == presets.get("llama3.1-8b")
    assert tokenizer.vocab_size == checkpoint.config.vocab_size


def test_without_any_download_a_tokenizer_of_bytes_serves(monkeypatch):
    def fail(asset):
        raise DownloadError("no network.")

    config = presets.get("llama3.1-8b")
    whole = sources.llama3_tokenizer(config)
    monkeypatch.setattr(assets, "fetch", fail)
    plain = sources.llama3_tokenizer(config)
    assert plain.special == whole.special and plain.stop_ids == whole.stop_ids
    assert plain.vocab_size == config.vocab_size
    assert plain.decode(plain.encode("naïve", bos=True), skip_special=True) == "naïve"
    assert plain.decode([5000]) == "[5000]"
