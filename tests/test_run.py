"""Runs that are killed and go on; what can't be a run is refused."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import datasets
import jax
import numpy as np
import pytest

from llama_nb import disk, presets, sharding
from llama_nb.errors import CorruptFileError, InputError
from llama_nb.train.checkpoints import Checkpoints
from llama_nb.train.run import DivergedError, Run, Settings
from llama_nb.train.step import Recipe

CONFIG = dataclasses.replace(presets.get("tiny"), embed_dim=32, ffn_dim=64)
SETTINGS = Settings(steps=12, batch=4, T=16, warmup=2, recipe=Recipe("float32", "everything"))


def corpus():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 256, n).tolist() for n in rng.integers(5, 60, 40)]
    return datasets.Dataset.from_dict({"ids": ids})


def run(folder, settings=SETTINGS, config=CONFIG, **options):
    return Run(folder, config, corpus(), settings, save_every=4, **options)


def logged(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[name] for name in ("step", "loss", "norm")) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the log of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    rows = list(run(folder))
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [path.name for path in sorted((folder / "checkpoints").glob("*"))] == ["12", "4", "8"]
    return logged(folder)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_run import run
folder = Path(sys.argv[1])
for row in run(folder, resume=True):
    print(row["step"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "seed"), [(1, 1), (2, 2)])
def test_killed_and_resumed_it_is_the_same_run(whole, tmp_path, kills, seed):
    """SIGKILL at a random moment, checkpoints being written included; bit for bit."""
    folder, draw = tmp_path / "run", random.Random(seed)
    command = [sys.executable, "-c", CHILD.format(tests=os.path.dirname(__file__)), folder]
    for _ in range(kills):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stop = draw.randint(1, 8)
        for line in child.stdout:
            if int(line) >= stop:
                break
        time.sleep(draw.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    rest = list(run(folder, resume=True))
    assert rest and rest[-1]["step"] == 12
    assert logged(folder) == whole


CUT = """
import os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_run import run
folder = Path(sys.argv[1])

def kill():
    while not list((folder / "checkpoints").glob("8.*tmp*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

for row in run(folder):
    if row["step"] == 7:
        while not (folder / "checkpoints/4").exists():
            pass
        threading.Thread(target=kill).start()
"""


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(whole, tmp_path):
    """What was being written is lost, what was written before is not."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", CUT.format(tests=os.path.dirname(__file__)), folder]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert {path.name.partition(".")[0] for path in (folder / "checkpoints").iterdir()} == {
        "4",
        "8",
    }
    again = run(folder, resume=True)
    assert again.step == (8 if (folder / "checkpoints/8").exists() else 4)
    list(again)
    assert logged(folder) == whole
    assert [path.name for path in sorted((folder / "checkpoints").glob("*"))] == ["12", "4", "8"]


FULL = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from llama_nb.errors import InputError
from test_run import run
folder = Path(sys.argv[1])
try:
    for row in run(folder):
        if row["step"] == 6:  # From here on no file may grow beyond this size.
            while not (folder / "checkpoints/4").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
except InputError as error:
    print(row["step"], error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [30_000, 100])
def test_a_full_disk_loses_nothing(whole, tmp_path, size):
    """Found by the thread that writes a checkpoint, or when a line is logged."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", FULL.format(tests=os.path.dirname(__file__)), folder]
    child = subprocess.run([*command, str(size)], capture_output=True, text=True, check=True)
    step, sentence = child.stdout.strip().split(" ", 1)
    assert 6 <= int(step) < 12
    assert sentence == (
        f"there is no room left in {folder}; what was saved there before is whole. Make room and "
        "go on with --resume."
    )
    again = run(folder, resume=True)
    assert again.step == 4
    list(again)
    assert logged(folder) == whole
    assert [path.name for path in sorted((folder / "checkpoints").glob("*"))] == ["12", "4", "8"]


@pytest.mark.slow
def test_a_checkpoint_is_begun_only_where_there_is_room(whole, tmp_path, monkeypatch):
    folder, free = tmp_path / "run", [10**9, 1000]
    monkeypatch.setattr(disk, "free_bytes", lambda _: free.pop(0))
    with pytest.raises(InputError, match=r"there is no room left in .* whole\. Make room"):
        list(run(folder))
    monkeypatch.undo()
    again = run(folder, resume=True)
    assert again.step == 4
    list(again)
    assert logged(folder) == whole


def test_a_folder_that_can_not_be_written_to(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_text", full)
        with pytest.raises(InputError, match="there is no room left in"):
            run(tmp_path / "run")
    run(tmp_path / "run").close()  # Nothing of the first try is in the way.


def test_tokens_beyond_the_vocabulary(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=250)
    with pytest.raises(
        InputError, match=r"have token 25\d, and this model's vocabulary ends at 249"
    ):
        list(run(tmp_path / "run", config=config))


def test_resumed_in_the_same_process(whole, tmp_path):
    folder = tmp_path / "run"
    first = run(folder)
    for row in first:
        if row["step"] == 6:
            break
    first.close()
    again = run(folder, resume=True)
    assert again.step == 4  # The last checkpoint; steps 5 and 6 are computed again.
    assert len(logged(folder)) == 4
    assert [row["step"] for row in again] == list(range(5, 13))
    assert logged(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "strategy"), [((4, 1), "dp"), ((4, 2), "fsdp"), ((2, 2), "tp")])
def test_meshes_learn_the_same(whole, tmp_path, mesh, strategy):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    settings = dataclasses.replace(SETTINGS, batch=8)
    layout = sharding.layout(CONFIG, sharding.make_mesh(mesh), strategy)
    list(run(tmp_path / "one", settings))
    list(run(tmp_path / "many", settings, layout=layout))
    np.testing.assert_allclose(logged(tmp_path / "many"), logged(tmp_path / "one"), rtol=2e-4)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    settings = dataclasses.replace(SETTINGS, peak=1e30, warmup=5, clip=1e30)
    with pytest.raises(
        DivergedError, match=r"step \d+: the loss is .*the last checkpoint is of step"
    ):
        list(run(tmp_path / "run", settings))


def test_folders_that_are_taken(tmp_path):
    folder = tmp_path / "run"
    first = run(folder)
    with pytest.raises(InputError, match="is in use by another run"):
        run(folder)
    first.close()
    with pytest.raises(InputError, match="holds a run already; go on with --resume"):
        run(folder)
    other = dataclasses.replace(SETTINGS, peak=0.5)
    with pytest.raises(InputError, match=r"settings.peak = 0.001, and 0.5 was asked for"):
        run(folder, other, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty, and holds no run"):
        run(tmp_path / "mine")
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path / "mine/notes.txt")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


def test_a_checkpoint_of_another_model(tmp_path):
    saved = Checkpoints(tmp_path)
    from llama_nb.data import Place

    saved.save(3, {"w": jax.numpy.ones((2, 3))}, Place(1, 2, 3))
    saved.close()
    again = Checkpoints(tmp_path)
    state, place = again.restore(3, {"w": jax.numpy.zeros((2, 3))})
    assert (state["w"] == 1).all() and place == Place(1, 2, 3)
    with pytest.raises(CorruptFileError, match="is not of this model, or damaged"):
        again.restore(3, {"other": jax.numpy.zeros((2, 3))})
    again.close()


def test_what_can_not_be_a_run(tmp_path):
    with pytest.raises(InputError, match="longer than this model's context"):
        run(tmp_path, dataclasses.replace(SETTINGS, T=513))
    with pytest.raises(InputError, match="a batch of 4 can't be computed in 3 parts"):
        dataclasses.replace(SETTINGS, recipe=Recipe(accumulate=3))
    assert not list(tmp_path.iterdir())
