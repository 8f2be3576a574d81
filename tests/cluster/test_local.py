"""The cluster on this machine: two hosts are one computer, and deaths are told by name.

Tests of one module share a cluster; those that break it come last.
"""

import inspect
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from llama_nb import cluster, presets
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.cluster import local, processes
from llama_nb.cluster.table import MismatchError
from llama_nb.errors import InputError
from llama_nb.model import with_params
from llama_nb.session import Session
from tests.spies import counted

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads other processes' environments"
)
slow = pytest.mark.slow

TINY = presets.get("tiny")
PROMPTS = [[1, 2, 3], [7] * 20, [200, 100, 50, 25, 12], [9, 9]] * 2


def marked(folder, state=None):
    """Return the processes that bear a cluster's mark."""
    mark = (state or local.read(folder))["mark"]
    return [p for there in processes.running(mark).values() for p in there]


def until(happened, seconds=30):
    """Wait for something, never for ever."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_second_start_starts_nothing(folder):
    before = {process.pid for process in marked(folder)}
    assert local.start(folder=folder) == []
    assert {process.pid for process in marked(folder)} == before
    with pytest.raises(InputError, match=r"2 hosts with 4 devices each runs in .* already"):
        local.start(hosts=3, folder=folder)
    assert list(local.status(folder)) == ["controller", "host0", "host1"]


def test_only_its_owner_can_read_it(folder):
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in [folder, *(folder / "security").iterdir()]}
    assert modes.pop(folder) == 0o700 and set(modes.values()) == {0o600} and len(modes) == 2
    assert stat.S_IMODE((folder / "security").stat().st_mode) == 0o700


def test_it_listens_on_this_machine_only_and_encrypts(folder):
    info = json.loads(local.client_file(folder).read_text())
    assert info["interface"] == "tcp://127.0.0.1"
    assert len(info["curve_serverkey"]) == 40 and len(info["key"]) == 64
    open_to = set()
    for process in marked(folder):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                open_to.add(connection.laddr.ip)
    assert open_to == {"127.0.0.1"}


def test_a_version_mismatch_is_caught(client):
    change = (
        "import importlib.metadata as m; old = m.version\n"
        "m.version = lambda p: '9.9' if p == 'jax' else old(p)"
    )
    client[1].execute(change).get(10)
    try:
        with pytest.raises(
            MismatchError, match=r"different jax \(.* on host0; 9.9 on host1\)"
        ) as e:
            cluster.join(client)
    finally:
        client[1].execute("m.version = old").get(10)
    assert re.search(r"^host1 +1 +- +- +\S+ +9\.9", str(e.value), re.MULTILINE)  # The table.


def test_a_taken_port_is_named(client):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of host0 .* is in use"):
            cluster.join(client, port=port)


def test_joined_once_and_for_all(client):
    first = cluster.join(client)
    assert [(row["host"], row["process"]) for row in first.rows] == [("host0", 0), ("host1", 1)]
    assert all(row["devices"][:2] == [4, 8] for row in first.rows)
    assert [row["group"] for row in cluster.join(client).rows] == [r["group"] for r in first.rows]
    assert "4 of 8" in str(first)


GENERATE = """
import numpy as np
from llama_nb import sharding
from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.model import with_params
from llama_nb.session import Session
from tests.spies import counted

checkpoint = open_checkpoint(path)
sizes = counted(checkpoint)
mesh = sharding.make_mesh(tuple(shape))
places = sharding.param_shardings(checkpoint.config, mesh, strategy)
params = load_params(checkpoint, shardings=places)
layout = sharding.layout(checkpoint.config, mesh, strategy)
session = Session(with_params(checkpoint.config, params, layout), 64)
tokens = list(session.tokens(session.feed(prompts), 8))
found = np.stack(tokens).tolist(), sum(sizes)
"""


@slow
@pytest.mark.parametrize(("shape", "strategy"), [((1, 8), "tp"), ((2, 4), "tp"), ((8, 1), "fsdp")])
def test_two_hosts_write_what_one_does(joined, run, write_model, tmp_path, shape, strategy):
    path = write_model(tmp_path / "tiny", TINY).path
    session = Session(with_params(TINY, load_params(open_checkpoint(path))), 64)
    expected = np.stack(list(session.tokens(session.feed(PROMPTS), 8)))
    names = {"path": str(path), "shape": shape, "strategy": strategy, "prompts": PROMPTS}
    (tokens, size), (others, other_size) = run(inspect.getsource(counted) + GENERATE, **names)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(others, expected)
    if strategy == "fsdp":  # Nothing is kept twice, so together they read the file once.
        assert size == other_size == TINY.param_count() / 2


STEP = """
import dataclasses
import jax, numpy as np, optax
from llama_nb import presets, sharding
from llama_nb.data.packing import Batch
from llama_nb.train.start import random
from llama_nb.train.step import Recipe, train_step

config, sgd = dataclasses.replace(presets.get("tiny"), num_layers=1), optax.sgd(0.1)
rows = np.random.default_rng(0).integers(0, 256, (8, 17), dtype=np.int32)

def step(layout=None):
    params, batch = random(config, 0, layout), Batch(rows[:, :-1], rows[:, 1:])
    if layout is not None:
        place = layout.sharding((8, 16), ("batch", None))
        batch = Batch(*(
            jax.make_array_from_callback(x.shape, place, lambda i: x[i])
            for x in (batch.tokens, batch.targets)
        ))
    recipe = Recipe("float32")
    options = {"config": config, "optimizer": sgd, "layout": layout, "recipe": recipe}
    after, _, numbers = train_step(params, sgd.init(params), batch, **options)
    return [float(x) for x in (numbers["loss"], numbers["norm"], optax.global_norm(after))]
"""


@slow
def test_a_training_step_over_hosts_is_the_step(joined, run):
    """With weights in parts; chapter 25 does it with whole ones, and compares the update."""
    here = {}
    exec(STEP, here)
    layout = 'sharding.layout(config, sharding.make_mesh((8, 1)), "fsdp")'
    first, second = run(f"{STEP}\nfound = step({layout})")
    assert first == second
    np.testing.assert_allclose(first, here["step"](), rtol=1e-5)


def test_only_python_prints(client):
    """Gloo reports every connection from C++, which would hide what a cell says."""
    told = client[1].execute("import os; os.write(1, b'noise'); print('said')")
    told.get(10)
    told.wait_for_output(10)  # It comes on a connection of its own, perhaps after the result.
    assert told.stdout == "said\n"


def test_edited_code_is_reloaded_everywhere(client, run, tmp_path):
    package = tmp_path / "edited"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "low.py").write_text("def answer():\n    return 1\n")
    (package / "high.py").write_text(
        "from edited.low import answer\n\n\ndef ask():\n    return answer()\n"
    )
    load = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    load += "from edited import high\nfrom edited.high import ask\n"
    assert run(load + "found = ask()") == [1, 1]
    # As long as before, and within the same second: the cached bytecode would look current.
    (package / "low.py").write_text("def answer():\n    return 2\n")
    assert cluster.reload(client, "edited") == {"host0": 3, "host1": 3}
    assert run("found = ask(), high.ask()") == [(2, 2), (2, 2)]
    (package / "low.py").write_text("def answer(:\n")
    with pytest.raises(InputError, match=r"host0 can't import the new edited .* the old one"):
        cluster.reload(client, "edited")
    assert run("found = ask()") == [2, 2]


@slow
def test_interrupt_ends_what_runs(client):
    running = client[:].execute("import time\nwhile True:\n    time.sleep(0.05)")
    until(lambda: all(row.get("busy") for row in cluster.table(client, timeout=0.5).rows))
    with pytest.raises(InputError, match="host0, host1 still runs something else"):
        cluster.join(client)
    assert cluster.interrupt(client) == []
    with pytest.raises(Exception, match="KeyboardInterrupt"):
        running.get(10)


@slow
@pytest.mark.parametrize("field", ["curve_serverkey", "key"])
def test_a_wrong_key_is_turned_away(folder, client, tmp_path, field):
    info = json.loads(local.client_file(folder).read_text())
    (tmp_path / "client.json").write_text(json.dumps({**info, field: "0" * len(info[field])}))
    with pytest.raises(InputError, match="does not answer to its key"):
        cluster.connect(tmp_path / "client.json", timeout=2)


@slow
@pytest.mark.parametrize("field", ["curve_serverkey", "key"])
def test_a_strangers_engine_is_turned_away(folder, client, tmp_path, field):
    before = list(client.ids)
    info = json.loads((folder / "security/ipcontroller-engine.json").read_text())
    (tmp_path / "engine.json").write_text(json.dumps({**info, field: "0" * len(info[field])}))
    command = [sys.executable, "-m", "ipyparallel.engine", f"--file={tmp_path / 'engine.json'}"]
    stranger = subprocess.run(
        [*command, f"--profile-dir={tmp_path}", "--timeout=3"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert stranger.returncode != 0
    assert client.ids == before


LOCAL = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
from llama_nb import cluster
client = cluster.connect({file!r}, local=True)
print(cluster.join(client))
done = shell.run_cell('''%%px --local
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
mesh = jax.make_mesh((8,), ("all",), axis_types=(AxisType.Auto,))
place = NamedSharding(mesh, PartitionSpec("all"))
x = jax.make_array_from_callback((8,), place, lambda i: np.arange(8.0)[i])
total = float(jax.jit(lambda x: x.sum())(x))
''')
done.raise_error()
mine = shell.user_ns
print("TOTALS", mine["jax"].process_index(), mine["total"], client[:]["total"])
shell.run_cell("%%px --local\\njax.distributed.shutdown()")  # Who leaves alone waits for others.
"""


@slow
def test_the_notebook_is_a_host_of_its_own(tmp_path):
    """Its process is the first of the mesh; only the other host has an engine."""
    folder = tmp_path / "c"
    try:
        assert local.start(notebook=True, folder=folder) == ["controller", "host1"]
        code = LOCAL.format(file=str(local.client_file(folder)))
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(cluster.__path__[0]))
        shell = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=90,
            env=environment,
            check=False,
        )
        assert "TOTALS 0 28.0 [28.0]" in shell.stdout, shell.stdout + shell.stderr
        assert re.search(r"^host0 +notebook +0 +4 of 8", shell.stdout, re.MULTILINE)
    finally:
        local.stop(folder)


@slow
@pytest.mark.parametrize("end", ["raise ValueError", "os.kill(os.getpid(), 9)"])
def test_it_ends_with_the_python_that_wanted_so(tmp_path, end):
    code = f"""
    import os
    from llama_nb.cluster import local
    options = {{"folder": {str(tmp_path / "c")!r}, "until_exit": True}}
    local.start(1, 1, **options)
    assert local.start(1, 1, **options) == []
    print(local.read(local.Path(options["folder"]))["mark"], flush=True)
    {end}
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert len(done.stdout.strip()) == 32, done.stderr
    until(lambda: not marked(None, {"mark": done.stdout.strip()}))


@slow
def test_a_host_killed_in_a_collective_is_named_and_comes_back(joined, capfd):
    """Within 60 s the cell has ended, and the message names the host that died first."""
    code = """
    import jax, numpy as np, os
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    mesh = jax.make_mesh((8,), ("all",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("all"))
    x = jax.make_array_from_callback((8,), place, lambda i: np.arange(8.0)[i])
    total = jax.jit(lambda x: x.sum())
    while True:
        x = x + total(x) * 0
        x.block_until_ready()
    """
    client, victim = joined, joined[1].apply_sync(os.getpid)
    running = client[:].execute(textwrap.dedent(code))
    time.sleep(2)
    assert not running.ready()
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(Exception, match=r"host1 \(engine 1\) died while it ran this"):
        running.get(60)
    assert time.monotonic() - killed < 60
    assert client.gone[0] == "host1"
    assert "host1 is gone: its engine (number 1) died." in capfd.readouterr().err
    with pytest.raises(InputError, match=r"host1|no engine"):
        cluster.join(client)
    cluster.restart(client)
    assert [row["process"] for row in cluster.join(client).rows] == [0, 1]


@slow
def test_a_dead_engine_is_replaced_by_start(folder, client):
    cluster.restart(client)  # Of a group, the others would end with their first host.
    os.kill(client[0].apply_sync(os.getpid), signal.SIGKILL)
    until(lambda: "host0" in client.gone)
    assert local.start(folder=folder) == ["host0"]
    assert {row["host"] for row in client.wait(2, timeout=30).rows} == {"host0", "host1"}


def test_stop_leaves_no_process_and_touches_no_other(folder, client):
    state, bystander = (
        local.read(folder),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1),
    )
    try:
        assert set(local.stop(folder)) == {"controller", "host0", "host1"}
        assert marked(folder, state) == []
        assert bystander.poll() is None
        assert local.status(folder) == {} and local.stop(folder) == []
    finally:
        bystander.kill()
        bystander.communicate()
