"""host.sh and store.sh on this machine, with services that only wait."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hosts run Linux")

# Stands in for Python: it does what host.sh waits for, then sleeps under the service's name.
FAKE = r"""#!/usr/bin/env bash
[[ -z "$BROKEN" || $1 = -c ]] || { echo "No module named $BROKEN"; exit 1; }
case "$*" in
  -c*json*) echo "127.0.0.1 $PORT_OF_CONTROLLER"; exit ;;
  -c*) exit 0 ;;
  *jupyterlab*) echo "http://127.0.0.1:8888/lab?token=abc" ;;
  *ipyparallel.engine*)
    echo "Completed registration"
    if [ -n "$BRIEF" ]; then
      echo "engine $LLAMA_NB_RANK"
      exit
    fi ;;
  *ipyparallel.controller*)
    folder=${3#*=}/security
    mkdir -p "$folder"
    for who in client engine; do echo $RANDOM >"$folder/ipcontroller-$who.json"; done ;;
esac
[ -z "$STUBBORN" ] || trap '' TERM
if [ -n "$CHILD" ]; then sleep 287 & fi
exec -a "python $*" sleep 286
"""


class Host:
    """A home folder with an environment, and the processes that host.sh starts there."""

    def __init__(self, home):
        self.home, self.folder = home, home / ".llama-nb" / "llama"
        python = home / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(FAKE)
        python.chmod(0o755)

    def popen(self, *words, **environment):
        place = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        place |= dict.fromkeys(("STUBBORN", "CHILD", "BROKEN", "BRIEF", "PORT_OF_CONTROLLER"), "")
        return subprocess.Popen(
            ["bash", CLUSTER / "host.sh", "--venv", self.home / "venv", *words],
            env=place | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words, **environment):
        process = self.popen(*words, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out.strip(), err.strip())

    def pid(self, service):
        return int((self.folder / f"{service}.pid").read_text().split()[0])

    def session(self, number):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if int(fields[3]) == number and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host("stop", GRACE="0")
    for file in host.folder.glob("*.pid"):
        raise AssertionError(f"{file} was left")


@pytest.fixture
def stranger():
    process = subprocess.Popen(["sleep", "285"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


CONTROLLER = ("start", "controller", "--address", "127.0.0.1")


def test_started_once_found_again_and_stopped(host):
    assert host(*CONTROLLER).stdout.startswith("controller: started at 127.0.0.1, encrypted")
    pid = host.pid("controller")
    assert host(*CONTROLLER).stdout == f"controller: running already (process {pid})"
    assert host("status", "controller").stdout == f"controller: running (process {pid})"
    for path, mode in [
        (host.home / ".llama-nb", 0o700),
        (host.folder, 0o700),
        (host.folder / "controller/security", 0o700),
        (host.folder / "controller/security/ipcontroller-engine.json", 0o600),
        (host.folder / "controller.log", 0o600),
    ]:
        assert path.stat().st_mode & 0o777 == mode, path
    assert host("stop").stdout.splitlines()[-1] == "controller: stopped"
    assert host.session(pid) == []
    assert not list(host.folder.glob("controller/security/*"))
    assert host("status", "controller").returncode == 1
    assert host("stop").stdout.splitlines()[-1] == "controller: not running"


def test_four_starts_at_once_start_one(host):
    starts = [host.popen(*CONTROLLER) for _ in range(4)]
    said = [process.communicate()[0] for process in starts]
    assert sum("started at" in text for text in said) == 1
    assert sum("running already" in text for text in said) == 3


@pytest.mark.slow
def test_what_it_started_ends_with_it(host):
    """Children end too, also when their parent was killed and only its number is left."""
    host(*CONTROLLER, CHILD="1")
    pid = host.pid("controller")
    assert len(host.session(pid)) == 2
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
    assert len(host.session(pid)) == 1
    assert host("status", "controller").returncode == 1
    assert host("stop", "controller").stdout == "controller: stopped"
    assert host.session(pid) == []


def test_one_that_does_not_listen_is_ended(host):
    host(*CONTROLLER, STUBBORN="1")
    pid = host.pid("controller")
    assert host("stop", "controller", GRACE="1").stdout == "controller: stopped"
    assert host.session(pid) == []


@pytest.mark.parametrize("wrong", ["ticks", "boot", "name"])
def test_a_process_that_is_not_ours_is_left_alone(host, stranger, wrong):
    """The number in the pid file is another's now: of another time, boot or name."""
    stat = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(") ")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    place = f"{'x' if wrong == 'boot' else boot}/{os.readlink('/proc/self/ns/pid')}"
    ticks = int(stat[19]) - (wrong == "ticks")
    host.folder.mkdir(parents=True)
    (host.folder / "engine.pid").write_text(f"{stranger.pid} {ticks} {place}\n")
    assert host("status", "engine").stdout == "engine: not running"
    assert "is not ours and was left alone" in host("stop", "engine").stdout
    assert stranger.poll() is None


@pytest.mark.parametrize("text", ["", "x y z", "-1 5 x", "99999999 1 x"])
def test_a_damaged_pid_file_harms_nobody(host, text):
    host.folder.mkdir(parents=True)
    (host.folder / "engine.pid").write_text(text)
    assert host("stop", "engine").returncode == 0
    (host.folder / "engine.pid").unlink(missing_ok=True)


def test_an_engine_of_an_earlier_controller_is_replaced(host, listener):
    """Not one with the file that is there; and without a controller nothing is started."""
    file = host.folder / "engine.json"
    start = ("start", "engine", "--id", "0")
    done = host(*start)
    assert done.returncode == 2 and "There is no connection file" in done.stderr
    file.write_text("first")
    file.chmod(0o644)
    assert host(*start, PORT_OF_CONTROLLER=listener).stdout.startswith("engine: started")
    first = host.pid("engine")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "running already" in host(*start, PORT_OF_CONTROLLER=listener).stdout
    file.write_text("second")
    done = host(*start, PORT_OF_CONTROLLER="1")
    assert done.returncode == 2 and "the file is stale (run start again)" in done.stderr
    assert host.pid("engine") == first
    said = host(*start, PORT_OF_CONTROLLER=listener).stdout.splitlines()
    assert said[0] == "engine: stopped" and said[1].startswith("engine: started")
    assert host.session(first) == [] and host.pid("engine") != first


def test_an_engine_is_told_who_it_is(host, listener):
    host.folder.mkdir(parents=True)
    (host.folder / "engine.json").write_text("file")
    who = ("--id", "3", "--env", "A=b c")
    assert host("start", "engine", *who, PORT_OF_CONTROLLER=listener).returncode == 0
    given = Path(f"/proc/{host.pid('engine')}/environ").read_text().split("\0")
    assert {"LLAMA_NB_RANK=3", "A=b c", f"PYTHONPATH={CLUSTER.parent}"} <= set(given)
    assert "--IPEngine.id=3" in Path(f"/proc/{host.pid('engine')}/cmdline").read_text()


def test_what_does_not_start_says_why(host, listener):
    done = host("start", "notebook", "--port", "8899", BROKEN="jupyterlab")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "host.sh: The notebook ended as it started: No module named jupyterlab"
    )
    done = host("start", "notebook", "--port", listener)
    assert done.returncode == 2
    assert done.stderr == (
        f"host.sh: Port {listener} is in use on this host; choose another with --port."
    )
    done = host(*CONTROLLER, "--ports", f"{listener}-{listener}")
    assert done.stderr == f"host.sh: Port {listener} of 127.0.0.1 is in use; choose other --ports."
    done = host("start", "controller", "--address", "8.8.8.8")
    assert "8.8.8.8 is a public address" in done.stderr
    done = host("start", "controller", "--address", "10.255.255.254")
    assert "is not an address of this host" in done.stderr
    for done in (host("start", "engine", "--id", "x"), host("wait", "2")):
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_a_connection_file_without_its_controller_is_stale(host):
    host(*CONTROLLER)
    os.kill(host.pid("controller"), signal.SIGKILL)
    done = host("wait", "2")
    assert done.returncode == 2
    assert "is stale: its controller does not run; start it again." in done.stderr


def test_the_notebook_says_where_it_is(host):
    said = "notebook: http://127.0.0.1:8888/lab?token=abc"
    assert host("start", "notebook", "--port", "8899").stdout == said
    pid = host.pid("notebook")
    # What runs in it finds `llama_nb`, which is copied to hosts and not installed.
    assert f"PYTHONPATH={CLUSTER.parent}" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert host("start", "notebook", "--port", "8899").stdout == said
    assert host.pid("notebook") == pid


def run_script(host, folder, command, tools, **environment):
    """Run a scheduler's script with stand-ins for the programs it finds on its nodes."""
    for name, body in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    place = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(host.home), "BRIEF": "1"}
    place |= dict.fromkeys(("STUBBORN", "CHILD", "BROKEN"), "") | environment
    done = subprocess.run(
        command, env=place, cwd=CLUSTER.parent, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_slurm_starts_an_engine_for_each_task(host, listener, tmp_path_factory):
    """The job's own controller, numbers from Slurm, and no controller after the job."""
    srun = 'for SLURM_PROCID in 0 1; do export SLURM_PROCID; "${@:2}" || exit; done'
    said = run_script(
        host,
        tmp_path_factory.mktemp("bin"),
        ["bash", CLUSTER / "slurm.sbatch"],
        {"srun": srun, "hostname": "echo 8.8.8.8 127.0.0.1"},
        SLURM_SUBMIT_DIR=str(CLUSTER.parent),
        VENV=str(host.home / "venv"),
        PORT_OF_CONTROLLER=listener,
    )
    assert said[0].startswith("controller: started at 127.0.0.1")
    assert said[1:3] == ["Completed registration", "engine 0"]
    assert said[3:5] == ["Completed registration", "engine 1"]
    assert said[-1] == "controller: stopped"


def test_a_pod_of_kubernetes_starts_its_engine(host, listener, tmp_path_factory):
    """The first pod starts the controller too; each takes its number from its name."""
    text = (CLUSTER / "kubernetes.yaml").read_text()
    script = textwrap.dedent(re.search(r"- \|\n(.*?)\n {10}volumeMounts", text, re.S)[1])
    script = script.replace("/state", str(host.home)).replace("/opt/venv", str(host.home / "venv"))
    folder = tmp_path_factory.mktemp("bin")
    for number in (0, 1):
        said = run_script(
            host,
            folder,
            ["bash", "-c", script],
            {},
            HOSTNAME=f"llama-{number}",
            POD_IP="127.0.0.1",
            PORT_OF_CONTROLLER=listener,
        )
        assert any("controller: started" in line for line in said) is (number == 0)
        assert said[-1] == f"engine {number}"


@pytest.fixture
def store(tmp_path):
    """Return a function that runs store.sh; what it would do as root is noted in a file."""
    tools = tmp_path / "bin"
    tools.mkdir()
    mounts, log = tmp_path / "mounts", tmp_path / "log"
    mounts.write_text("")
    noted = f'echo "${{0##*/}} $*" >>{log}'
    for name, body in {
        "sudo": 'exec "$@"',
        "findmnt": f'sed -n "s|^${{!#}} ||p" {mounts}',
        "exportfs": noted,
        "mount.nfs": "",
        "mount": f'{noted}; echo "${{!#}} nfs4" >>{mounts}',
        "umount": f"{noted}; : >{mounts}",
        "fusermount": f"{noted}; : >{mounts}",
        "gcsfuse": f'{noted}; echo "${{!#}} fuse.gcsfuse" >>{mounts}',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)

    def run(*words):
        place = {"PATH": f"{tools}:{os.environ['PATH']}", "EXPORTS": str(tmp_path / "etc/exports")}
        command = ["bash", CLUSTER / "store.sh", *words]
        done = subprocess.run(command, env=place, capture_output=True, text=True)
        return done.returncode, (done.stdout or done.stderr).strip()

    run.log, run.mounts, run.exports = log, mounts, tmp_path / "etc/exports"
    return run


def test_a_folder_is_shared_with_the_workers_only(store, tmp_path):
    folder = str(tmp_path / "share")
    serve = ("serve", folder, "10.0.0.3", "10.0.0.4")
    assert store(*serve) == (0, f"nfs: {folder} is shared with 2 hosts")
    rights = "(rw,sync,no_subtree_check,root_squash)"
    assert store.exports.read_text() == f"{folder} 10.0.0.3{rights} 10.0.0.4{rights}\n"
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert store(*serve) == (0, f"nfs: {folder} is shared already")
    assert store("unserve", folder) == (0, f"nfs: {folder} is no longer shared")
    assert store("unserve", folder) == (0, "nfs: nothing is shared")
    assert store.log.read_text() == "exportfs -ra\n" * 2
    assert os.path.isdir(folder)


def test_mounts_are_made_once_and_others_left_alone(store, tmp_path):
    folder = str(tmp_path / "here")
    assert store("mount", "10.0.0.2", folder)[1] == f"nfs: {folder} is mounted from 10.0.0.2"
    assert store("mount", "10.0.0.2", folder) == (0, f"nfs: {folder} is mounted already")
    assert store("bucket", "data", folder) == (2, f"store.sh: {folder} is a mount point already.")
    assert store("unmount", folder) == (0, f"{folder}: unmounted")
    assert store("unmount", folder) == (0, f"{folder}: nothing is mounted")
    assert store("bucket", "data", folder)[1] == f"bucket: data is mounted at {folder}"
    assert store("bucket", "data", folder) == (0, f"bucket: {folder} is mounted already")
    assert store("unmount", folder) == (0, f"{folder}: unmounted")
    assert store("bucket", "data", folder, "--write")[0] == 0
    store.mounts.write_text(f"{folder} ext4\n")
    assert store("unmount", folder) == (
        2,
        f"store.sh: {folder} is mounted with type ext4, which is not one of ours: left alone.",
    )
    assert store.log.read_text().splitlines() == [
        f"mount -t nfs -o nosuid,nodev 10.0.0.2:{folder} {folder}",
        f"umount {folder}",
        f"gcsfuse --implicit-dirs -o ro data {folder}",
        f"fusermount -u {folder}",
        f"gcsfuse --implicit-dirs data {folder}",
    ]
