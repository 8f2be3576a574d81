"""No cluster, or what is left of one: one sentence each, and an exit code that is not 0."""

import json
import os
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("ipyparallel")

from llama_nb import cluster
from llama_nb.cluster import local
from llama_nb.cluster.__main__ import main
from llama_nb.cluster.join import _refuse
from llama_nb.cluster.table import MismatchError, Table
from llama_nb.errors import CorruptFileError, InputError, MissingFileError


def test_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_NB_CLUSTER", str(tmp_path))
    with pytest.raises(MissingFileError, match=r"no cluster runs.*llama_nb\.cluster start$"):
        cluster.connect()
    with pytest.raises(MissingFileError, match="no cluster runs"):
        cluster.connect(tmp_path / "nothing.json")


def test_a_stale_connection_file(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "ipcontroller-client.json"
    file.write_text(json.dumps({"interface": "tcp://127.0.0.1", "registration": port}))
    with pytest.raises(InputError, match=f"stale: nobody listens at 127.0.0.1:{port}"):
        cluster.connect(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"interface": 3}'])
def test_a_file_that_is_none(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CorruptFileError, match="no connection file"):
        cluster.connect(tmp_path / "x.json")


@pytest.mark.parametrize("arguments", [["--hosts", "0"], ["--devices", "0"]])
def test_refusals_are_one_sentence(capsys, tmp_path, arguments):
    assert main(["start", "--folder", str(tmp_path / "c"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cluster: ") and err.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_nothing_runs(capsys, tmp_path):
    folder = ["--folder", str(tmp_path / "c")]
    assert main(["status", *folder]) == 1 and main(["stop", *folder]) == 0
    assert main(["restart", *folder]) == 2
    assert "no cluster runs" in capsys.readouterr().err


def test_a_folder_that_is_a_file(capsys, tmp_path):
    (tmp_path / "c").write_text("")
    assert main(["start", "--folder", str(tmp_path / "c")]) == 2
    assert "can't hold a cluster" in capsys.readouterr().err


def test_a_process_without_the_mark_is_not_ours(tmp_path):
    """Whatever a file of process numbers says."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        state = {"hosts": ["host0"], "devices": 1, "notebook": False, "platform": "cpu"}
        (tmp_path / "cluster.json").write_text(json.dumps({**state, "mark": "0" * 32}))
        (tmp_path / "host0.pid").write_text(str(other.pid))
        (tmp_path / "controller.pid").write_text(str(other.pid))
        assert local.stop(tmp_path) == [] and other.poll() is None
    finally:
        other.communicate(b"\n")


ROW = {"rank": None, "process": None, "devices": None, "python": "3.11.7", "jax": "0.10.2"}
ROW |= {"jaxlib": "0.10.2", "libtpu": "", "llama_nb": "0a1b2c3d"}


@pytest.mark.parametrize(
    ("what", "value", "says"),
    [
        ("jax", "0.7.2", r"different jax \(0.10.2 on a; 0.7.2 on b\)"),
        ("python", "3.13.0", r"different python \(3.11 on a; 3.13 on b\)"),
        ("llama_nb", "", r"different llama_nb \(0a1b2c3d on a; none on b\); copy it"),
    ],
)
def test_hosts_that_differ(what, value, says):
    table = Table(
        [{**ROW, "host": "a", "engine": 0}, {**ROW, "host": "b", "engine": 1, what: value}]
    )
    with pytest.raises(MismatchError, match=says):
        table.check()


def test_hosts_that_do_not():
    rows = [
        {**ROW, "host": "a", "engine": 0},
        {**ROW, "host": "b", "engine": 1, "python": "3.11.9"},
    ]
    Table([*rows, {"host": "c", "engine": 2, "busy": True}]).check()


def test_what_restarts_engines_depends_on_where_they_are(tmp_path):
    """This machine's cluster can do it itself; a pod's engines are restarted over ssh."""
    here, pod = tmp_path / "here", tmp_path / "pod/controller"
    for folder in (here, pod):
        folder.mkdir(parents=True)
    (here / "cluster.json").write_text("{}")
    told = [
        cluster.Client.anew.fget(SimpleNamespace(file=local.client_file(folder)))
        for folder in (here, pod)
    ]
    assert [text.split()[1] for text in told] == ["cluster.restart(client)", "cluster/tpu.sh"]
    for text in told:
        with pytest.raises(
            InputError, match=rf"^b was late; for new processes, {re.escape(text)}\.$"
        ):
            _refuse(SimpleNamespace(anew=text), ["b"], "was late")


def test_connecting_does_not_wake_jax():
    code = "import llama_nb.cluster, sys; print('jax' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"
