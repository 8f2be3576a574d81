"""A pod and plain hosts, set up, driven and taken down with the scripts of cluster/ over real ssh.

The hosts are namespaces of this machine (shell_lab.py); stand_ins/gcloud plays gcloud's part.
"""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import shell_lab

REASON = shell_lab.why_not()
pytest.importorskip("ipyparallel")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

COUNT = 3
ADDRESSES = ",".join(f"10.77.0.1{n}" for n in range(COUNT))
POD = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "NAME": "pod",
    "TYPE": "v5litepod-12",
    "VERSION": "v2-alpha-tpuv5-lite",
}
# What engines on these hosts compute with: two CPU devices each, their collectives over TCP.
CPU = "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = shell_lab.Lab(tmp_path_factory.mktemp("lab"), COUNT)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def tpu(lab):
    def tpu(*words, **environment):
        return lab.run("cluster/tpu.sh", *words, **POD, ENGINE_ENV=CPU, **environment)

    assert tpu("create").returncode == 0
    done = tpu("setup")
    assert done.returncode == 0, done.stderr
    return tpu


@pytest.fixture(scope="module")
def pod(lab, tpu):
    """Return the same with controller and engines started, by what a dry run prints."""
    printed = tpu("--dry-run", "start", ADDRESSES=ADDRESSES).stdout
    done = lab.run("bash", "-ec", printed)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} engines registered: 0, 1, 2" in done.stdout
    return tpu


def lines(done):
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def end(lab, number):
    """Wait until nothing of a cluster runs on a host.

    An engine's nanny has a session of its own: it sees the engine gone, and ends by itself.
    """
    lab.until(lambda: lab.alive(number) == [])


def apply(lab, code, name="pod", first=""):
    """Run code on every engine from a client on worker 0, as a notebook there would."""
    file = f"$HOME/.llama-nb/{name}/controller/security/ipcontroller-client.json"
    program = f"""
import json, sys
from llama_nb import cluster
client = cluster.connect(sys.argv[1], timeout=20)
{first}
view = client[:]
view.execute({code!r}).get(60)
print(json.dumps(view.pull("answer").get(20)))
"""
    words = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {file}"
    done = lab.ssh(0, f"cd llama-nb && {words}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_code_is_copied_whole(lab, tpu):
    """An edit goes to all hosts, and what was deleted here is deleted there."""
    gone = lab.folder / "worker-1/llama-nb/llama_nb/gone.py"
    kept = lab.folder / "worker-1/llama-nb/notes.txt"
    gone.write_text("")
    kept.write_text("")
    assert lines(tpu("setup")) == [f"[{n}] Python: ready at {sys.prefix}" for n in range(COUNT)]
    assert not gone.exists() and kept.exists()
    for number in range(COUNT):
        home = lab.folder / f"worker-{number}"
        for name in ("llama_nb/errors.py", "cluster/host.sh", "pyproject.toml"):
            assert (home / "llama-nb" / name).read_bytes() == (shell_lab.ROOT / name).read_bytes()
        assert not (home / "llama-nb.tgz").exists()
    assert not list(lab.home.rglob("*.tgz"))


def test_commands_run_on_ranges(tpu):
    assert lines(tpu("run", "--", "hostname")) == [f"[{n}] worker-{n}" for n in range(COUNT)]
    chosen = lines(tpu("--worker", "2,0-1", "run", "--", "hostname"))
    assert chosen == [f"[{n}] worker-{n}" for n in range(COUNT)]
    assert lines(tpu("--worker", "1-2", "run", "hostname")) == ["[1] worker-1", "[2] worker-2"]
    words = ["printf", "%s|", "two words", "it's", "$HOME", "--worker=9", ";reboot"]
    said = lines(tpu("--worker=1", "run", "--", *words))
    assert said == ["[1] two words|it's|$HOME|--worker=9|;reboot|"]
    done = tpu("run", "--", "sh", "-c", '[ "$(hostname)" = worker-0 ] || exit 3')
    assert done.returncode == 1
    assert done.stderr == "tpu.sh: Failed on worker 1 (exit code 3), 2 (exit code 3).\n"


def test_a_dry_run_prints_what_runs(lab, tpu):
    """Every gcloud command of a dry run, and no other, reaches gcloud in the real one."""
    for words in (["--worker", "1-2", "run", "--", "echo", "a b"], ["copy"], ["status"], ["list"]):
        (lab.folder / "gcloud.log").unlink(missing_ok=True)
        printed = tpu("--dry-run", *words, ADDRESSES=ADDRESSES).stdout.splitlines()
        assert not (lab.folder / "gcloud.log").exists()
        tpu(*words)
        ran = map(json.loads, (lab.folder / "gcloud.log").read_text().splitlines())
        wanted = [shlex.split(line)[1:] for line in printed if line.startswith("gcloud ")]
        assert sorted(ran) == sorted(wanted)


def test_started_twice_nothing_is_started_twice(lab, pod):
    before = [lab.alive(number) for number in range(COUNT)]
    again = lines(pod("start"))
    assert sum("running already" in line for line in again) == COUNT + 1
    assert f"[0] {COUNT} engines registered: 0, 1, 2" in again
    assert [lab.alive(number) for number in range(COUNT)] == before
    assert sum("running" in line for line in lines(pod("status"))) == COUNT + 1
    host = f"bash llama-nb/cluster/host.sh --name pod --venv {sys.prefix}"
    done = lab.ssh(0, f"{host} wait {COUNT + 2} 1")
    assert done.returncode == 1
    assert done.stderr.startswith("3 of 5 engines registered within 1 s; missing: 3, 4 (see ")


def test_the_key_stays_private(lab, pod):
    """Files 0600 in folders 0700, none left on the operator's machine, the private address only."""
    for number in range(COUNT):
        folder = lab.folder / f"worker-{number}/.llama-nb"
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                assert path.stat().st_mode & 0o077 == 0, path
            elif path.suffix in (".json", ".pid", ".log"):
                assert path.stat().st_mode & 0o777 == 0o600, path
    assert not list(lab.home.rglob("*.json"))
    file = lab.folder / "worker-1/.llama-nb/pod/engine.json"
    assert json.loads(file.read_text())["curve_serverkey"]
    listening = lab.ssh(0, "ss -Hltn | awk '{ print $4 }'").stdout.split()
    addresses = {line.rpartition(":")[0] for line in listening if not line.endswith(":22")}
    assert addresses == {"10.77.0.10", "127.0.0.1"}


def test_one_line_runs_on_all(lab, pod):
    code = "import socket, llama_nb; answer = [socket.gethostname(), llama_nb.__file__]"
    expected = [
        [f"worker-{n}", str(lab.folder / f"worker-{n}/llama-nb/llama_nb/__init__.py")]
        for n in range(COUNT)
    ]
    assert apply(lab, code) == expected


def test_a_dead_engine_is_named_and_restart_brings_it_back(lab, pod):
    before = [lab.alive(number) for number in range(COUNT)]
    number = (lab.folder / "worker-1/.llama-nb/pod/engine.pid").read_text().split()[0]
    assert pod("--worker", "1", "run", "--", "kill", "-9", number).returncode == 0
    done = pod("status")
    assert done.returncode == 1
    assert "[1] engine: not running" in done.stdout
    assert done.stderr == "tpu.sh: Failed on worker 1 (exit code 1).\n"
    done = pod("--worker", "1-2", "restart")
    assert done.returncode == 0, done.stderr
    assert pod("status").returncode == 0
    after = [lab.alive(number) for number in range(COUNT)]
    assert after[0] == before[0]  # the controller, and an engine that was not meant
    assert after[1] and after[2] and not set(after[2]) & set(before[2])
    code = "import socket; answer = socket.gethostname()"
    # The controller counts an engine in with its first heartbeat, up to three seconds later.
    lab.until(lambda: sorted(apply(lab, code)) == [f"worker-{n}" for n in range(COUNT)])


def test_a_stranger_on_the_host_is_left_alone(lab, pod):
    """Stop, here of one worker, ends its engine and nothing else; start brings it back."""
    lab.ssh(2, "setsid sleep 284 </dev/null >/dev/null 2>&1 &")
    assert lines(pod("--worker", "2", "stop")) == ["[2] engine: stopped"]
    end(lab, 2)
    assert lab.ssh(2, "pgrep -f '^sleep 284'").stdout
    assert lab.alive(0) and lab.alive(1)


def test_stop_leaves_no_process_and_no_key(lab, pod):
    said = lines(pod("stop"))
    assert "[0] controller: stopped" in said and "[1] engine: stopped" in said
    for number in range(COUNT):
        end(lab, number)
        left = {path.name for path in (lab.folder / f"worker-{number}/.llama-nb").rglob("*.json")}
        assert left <= {"engines.json"}  # the controller's list of engines, no key
    assert all("not running" in line for line in lines(pod("stop")))
    done = pod("status")
    assert done.returncode == 1 and "Failed on worker 0 (exit code 1), 1 " in done.stderr
    done = pod("--worker", "1", "start")
    assert done.returncode == 1  # there is no connection file to send
    assert "ipcontroller-engine.json" in done.stdout


def test_a_port_in_use_is_said(lab, tpu):
    lab.ssh(
        0, f"cd /tmp; setsid {sys.executable} -m http.server 10002 >/dev/null 2>&1 </dev/null &"
    )
    lab.until(lambda: ":10002" in lab.ssh(0, "ss -Hltn").stdout)
    done = tpu("start", PORTS="10000-10009")
    assert done.returncode == 1
    assert done.stdout == (
        "[0] host.sh: Port 10002 of 10.77.0.10 is in use; choose other --ports.\n"
    )
    assert done.stderr == "tpu.sh: Failed on worker 0 (exit code 2).\n"


def test_the_tunnel_leads_to_the_notebook(lab, tpu):
    """To worker 0's 127.0.0.1, which is reached in no other way."""
    place = lab.folder / "worker-0"
    (place / "page.html").write_text("a notebook")
    serve = f"cd {place}; setsid {sys.executable} -m http.server --bind 127.0.0.1 8888"
    lab.ssh(0, f"{serve} >/dev/null 2>&1 </dev/null &")
    fetch = "import urllib.request as u; print(u.urlopen('http://{}/page.html').read())"
    assert lab.run(sys.executable, "-c", fetch.format("10.77.0.10:8888")).returncode
    tunnel = lab.popen("cluster/tpu.sh", "tunnel", "9999", **POD, PORT="8888")
    try:
        look = [sys.executable, "-c", fetch.format("127.0.0.1:9999")]
        lab.until(lambda: "a notebook" in lab.run(*look).stdout)
        done = tpu("tunnel", "9999")
        assert done.returncode == 2
        assert done.stderr.startswith("tpu.sh: Port 9999 is in use on this machine; ")
    finally:
        os.killpg(tunnel.pid, signal.SIGTERM)
        tunnel.communicate(timeout=20)


def hosts(lab, *words, **environment):
    return lab.run(
        "cluster/hosts.sh",
        *words,
        HOSTS=str(lab.folder / "hosts.txt"),
        SSH_CONFIG=str(lab.folder / "ssh_config"),
        ENGINE_ENV=CPU,
        **environment,
    )


SUM = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
place = NamedSharding(Mesh(jax.devices(), "x"), P("x"))
x = jax.make_array_from_callback((jax.device_count(),), place, lambda i: jnp.arange(9.)[i])
total = jax.jit(jnp.sum, out_shardings=NamedSharding(place.mesh, P()))(x)
answer = [jax.process_index(), jax.local_device_count(), jax.device_count(), float(total)]
"""


def test_plain_hosts_join_into_one_mesh(lab):
    """`cluster.join` over the network, then a sum over the devices of both hosts."""
    text = "# the rack\n" + "".join(f"10.77.0.1{n} 10.77.0.1{n}\n" for n in range(2))
    (lab.folder / "hosts.txt").write_text(text)
    assert hosts(lab, "setup").returncode == 0
    done = hosts(lab, "start")
    assert done.returncode == 0, done.stderr
    joined = apply(lab, SUM, "llama", first="print(cluster.join(client))")
    assert joined == [[0, 2, 4, 6.0], [1, 2, 4, 6.0]]
    assert hosts(lab, "stop").returncode == 0
    end(lab, 0)
    end(lab, 1)


def test_an_unreachable_host_is_named(lab, tpu):
    lab.check(lab.operator, "ip link set veth2 down")
    try:
        done = tpu("run", "--", "hostname", TIMEOUT="3")
        assert done.returncode == 1
        assert "[0] worker-0" in done.stdout
        assert done.stderr == "tpu.sh: Failed on worker 2 (not reached over ssh).\n"
    finally:
        lab.check(lab.operator, "ip link set veth2 up")


def test_a_pod_that_is_not_there(lab, tpu):
    assert tpu("--yes", "delete").returncode == 0
    done = tpu("start")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("tpu.sh: There is no pod pod in us-west4-a")
    assert "nothing to delete" in tpu("--yes", "delete").stderr


def test_nothing_is_left_on_this_machine(lab):
    own = {path.name for path in Path("/sys/class/net").iterdir()}
    assert not own & {"br0", *(f"veth{n}" for n in range(COUNT))}
