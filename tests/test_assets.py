"""Fetching, from real wheels in a local folder: pip and uv run, the network does not."""

import concurrent.futures
import dataclasses
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest

from llama_nb import assets
from llama_nb.assets import Asset, cache_dir, fetch
from llama_nb.errors import CorruptFileError, DownloadError

CONTENT = bytes(range(256)) * 1000
PIP = importlib.util.find_spec("pip")


def make_wheel(folder, content=CONTENT, member="fakeasset/data.bin"):
    """Write a wheel that pip accepts, and return what describes the file in it."""
    info = "fakeasset-1.0.dist-info"
    path = folder / "fakeasset-1.0-py3-none-any.whl"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: fakeasset\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return Asset(
        package="fakeasset",
        version="1.0",
        member=member,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        wheel_size=path.stat().st_size,
    )


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Make an empty cache and an empty folder of wheels, the only one that pip and uv see."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("LLAMA_NB_CACHE", str(tmp_path / "cache"))
    for name in ("PIP", "UV"):
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(assets, "_PAUSE", 0.01)
    return wheels


@pytest.fixture(params=["pip", "uv"])
def installer(request, monkeypatch):
    """Run a test with each of the two programs that can fetch a wheel."""
    if request.param == "pip" and not PIP:
        pytest.skip("pip is not installed")
    if request.param == "uv":
        if not shutil.which("uv"):
            pytest.skip("uv is not installed")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return request.param


@pytest.fixture
def quick(monkeypatch):
    """Fetch with uv where there is one, which starts sooner than pip."""
    if shutil.which("uv"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def left_in_cache():
    return sorted(str(p.relative_to(cache_dir())) for p in cache_dir().rglob("*") if p.is_file())


WHOLE = ["fakeasset-1.0/data.bin", "fakeasset-1.0/data.bin.verified"]


def test_where_the_cache_is(monkeypatch):
    assert cache_dir() == Path(os.environ["LLAMA_NB_CACHE"])
    monkeypatch.delenv("LLAMA_NB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_dir() == Path("/elsewhere/llama_nb")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "llama_nb"


def test_fetch_then_reuse_offline(place, installer, capfd):
    asset = make_wheel(place)
    path = fetch(asset)
    assert path == asset.path and path.read_bytes() == CONTENT
    said = capfd.readouterr()
    title = r"downloading fakeasset 1.0 \(0.0 MB\)"
    assert said.out == "" and re.fullmatch(rf"{title} \.\.\.\n{title} took .* s\n", said.err)
    assert left_in_cache() == WHOLE
    shutil.rmtree(place)
    assert fetch(asset).read_bytes() == CONTENT
    assert capfd.readouterr() == ("", "")


def test_a_verified_file_is_not_hashed_again(place, quick, monkeypatch):
    asset = make_wheel(place)
    fetch(asset)
    monkeypatch.setattr(assets, "_hash", lambda path: pytest.fail("hashed"))
    fetch(asset)


def test_progress_can_be_silent(place, quick, capfd):
    fetch(make_wheel(place), progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_a_bar(place, quick, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(make_wheel(place))
    said = capsys.readouterr()
    assert said.out == "" and "\rdownloading fakeasset 1.0 (0.0 MB) [" in said.err
    assert " took " in said.err and said.err.endswith(" \n")


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_file_is_fetched_again(place, quick, damage):
    asset = make_wheel(place)
    path = fetch(asset)
    path.write_bytes(CONTENT[:1000] if damage == "cut" else CONTENT[::-1])
    assert fetch(asset).read_bytes() == CONTENT


def test_a_damaged_file_without_network_is_named(place, quick, monkeypatch):
    monkeypatch.setattr(assets, "_TRIES", 1)
    asset = make_wheel(place)
    path = fetch(asset)
    path.write_bytes(b"damaged")
    shutil.rmtree(place)
    with pytest.raises(DownloadError, match="in place of the file with another checksum"):
        fetch(asset, progress=False)


def test_a_file_put_there_by_hand_is_taken(place):
    asset = make_wheel(place)
    shutil.rmtree(place)
    asset.path.parent.mkdir(parents=True)
    asset.path.write_bytes(CONTENT)
    assert fetch(asset) == asset.path
    assert left_in_cache() == WHOLE


def test_another_checksum_is_refused(place, installer):
    asset = make_wheel(place, content=CONTENT + b"!")
    with pytest.raises(
        CorruptFileError, match=r"fakeasset/data\.bin .* has the checksum"
    ) as caught:
        fetch(asset, progress=False)
    assert asset.sha256 in str(caught.value)
    assert left_in_cache() == []


def test_a_wheel_without_the_file_is_refused(place, quick, monkeypatch):
    monkeypatch.setattr(assets, "_TRIES", 1)
    asset = dataclasses.replace(make_wheel(place), member="fakeasset/other.bin")
    with pytest.raises(CorruptFileError, match=r"does not hold fakeasset/other\.bin"):
        fetch(asset, progress=False)
    assert left_in_cache() == []


def test_no_such_package(place, installer, capfd):
    asset = dataclasses.replace(make_wheel(place), version="2.0")
    with pytest.raises(DownloadError) as caught:
        fetch(asset)
    message = str(caught.value)
    assert "fakeasset 2.0 could not be fetched (No " in message and "\n" not in message
    assert f"put it at {asset.path}." in message
    said = capfd.readouterr().err  # three tries, of which two go on
    assert said.count("stopped after") == 3 and said.count("failed: ") == 2
    assert left_in_cache() == []


@pytest.mark.skipif(not PIP, reason="pip is not installed")
def test_no_network(place, monkeypatch):
    asset = make_wheel(place)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    # Port 9 discards: nothing listens there.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(assets, "_TRIES", 1)
    with pytest.raises(DownloadError, match="no connection to the package index"):
        fetch(asset, progress=False)


def test_the_second_try_may_succeed(place, quick, monkeypatch, capfd):
    asset = make_wheel(place, content=b"damaged on the way")
    mended = types.SimpleNamespace(time=time.time, sleep=lambda seconds: make_wheel(place))
    monkeypatch.setattr(assets, "time", mended)
    assert fetch(asset).read_bytes() == CONTENT
    assert "try 1 of 3 failed" in capfd.readouterr().err


@pytest.mark.parametrize("said", assets._NO_SPACE)
def test_an_installer_that_meets_a_full_disk(place, monkeypatch, said):
    program = f"import sys; sys.exit('error: {said} (os error 28)')"
    monkeypatch.setattr(assets, "_command", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(DownloadError, match=f"{said}.*free some space there"):
        fetch(make_wheel(place), progress=False)
    assert left_in_cache() == []


def test_neither_pip_nor_uv(place, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DownloadError, match="neither pip nor uv"):
        fetch(make_wheel(place), progress=False)


def test_a_full_disk_is_seen_beforehand(place, monkeypatch):
    asset = dataclasses.replace(make_wheel(place), size=10**18)
    with pytest.raises(DownloadError, match=r"MB needed.*free some space there"):
        fetch(asset, progress=False)
    assert left_in_cache() == []


def test_a_disk_that_fills_up_meanwhile(place, quick, monkeypatch):
    asset = make_wheel(place)

    def replace(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(DownloadError, match=r"No space left on device\); free some space there"):
        fetch(asset, progress=False)
    assert left_in_cache() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
@pytest.mark.skipif(not PIP, reason="uv unpacks by itself, and the limit would kill it")
def test_a_limit_on_file_size_leaves_nothing_half_written(place):
    # A real failure in the middle of writing: the system refuses what goes beyond 100 kB, which
    # the wheel is not but the file in it is.
    asset = make_wheel(place)
    program = (
        "import resource, signal\n"
        "from llama_nb import assets\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = resource.RLIMIT_FSIZE\n"
        "resource.setrlimit(limit, (100_000, resource.getrlimit(limit)[1]))\n"
        f"assets.fetch(assets.{asset!r}, progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "DownloadError" in done.stderr and "free some space there" in done.stderr
    assert left_in_cache() == []


def test_a_place_that_cannot_be_a_folder(place, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_NB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="set LLAMA_NB_CACHE to another folder"):
        fetch(make_wheel(place), progress=False)


def test_two_processes_at_once(place):
    asset = make_wheel(place)
    program = (
        "from llama_nb import assets\n"
        f"path = assets.fetch(assets.{asset!r}, progress=False)\n"
        "print(len(path.read_bytes()))\n"
    )

    def run(_):
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, range(2)))
    assert [(d.stdout.strip(), d.stderr) for d in done] == [(str(len(CONTENT)), "")] * 2
    assert left_in_cache() == WHOLE
    assert fetch(asset).read_bytes() == CONTENT


def test_what_a_dead_process_left_is_swept(place, quick):
    asset = make_wheel(place)
    old, new = (asset.path.parent / f".download-{age}" for age in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"half")
    os.utime(old, (0, 0))
    fetch(asset, progress=False)
    assert not old.exists() and new.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "asset", [assets.LLAMA3_TOKENIZER, assets.SMOLLM2], ids=lambda a: a.package
)
def test_the_real_assets(asset, monkeypatch):
    for name in (
        "PIP_NO_INDEX",
        "PIP_FIND_LINKS",
        "PIP_CONFIG_FILE",
        "UV_NO_INDEX",
        "UV_FIND_LINKS",
    ):
        monkeypatch.delenv(name)
    monkeypatch.delenv("LLAMA_NB_CACHE")
    try:
        path = fetch(asset)
    except DownloadError as error:
        pytest.skip(str(error))
    assert path.stat().st_size == asset.size
    assert hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256
