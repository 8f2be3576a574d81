"""`train` and `eval` in this process: what they print, what they leave, how they refuse."""

import json
import os
import signal
import subprocess
import sys

import pytest

import llama_nb
from llama_nb.__main__ import main

WORDS = ("the", "llama", "eats", "green", "grass", "and", "sleeps", "under", "a", "tall", "tree")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(30):
        words = [WORDS[(number + i * (1 + number % 5)) % len(WORDS)] for i in range(60)]
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [
        [
            {"role": "user", "content": f"What is {n} and {n}?"},
            {"role": "assistant", "content": f"{2 * n}, I believe."},
        ]
        for n in range(20)
    ]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def train(data, out, *options):
    sizes = ["--batch", "4", "--context", "32", "--held-out", "0.2", "--save-every", "4"]
    return main(["train", "--data", str(data), "--out", str(out), *sizes, *options])


SCRATCH = ("--steps", "8", "--vocab", "270", "--lr", "0.003")


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert train(texts, out, *SCRATCH) == 0
    return out


def test_a_run_leaves_a_model(run, texts, capsys):
    rows = logged(run)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert all(row["mfu"] > 0 and row["tokens_per_s"] > 0 for row in rows)
    assert [row["step"] for row in rows if "held" in row] == [4, 8]
    model, tokenizer = llama_nb.load(run / "model")
    assert tokenizer.vocab_size == model.config.vocab_size == 270
    assert main(["generate", "the llama", "--model", str(run / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] is not None


def test_eval_says_what_the_run_said(run, texts, capsys):
    what = ["--model", str(run / "model"), "--data", str(texts), "--context", "32"]
    assert main(["eval", *what, "--held-out", "0.2", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["loss"] == pytest.approx(logged(run)[-1]["held"], abs=0.01)  # Saved in bfloat16.
    assert score["bits_per_byte"] == pytest.approx(
        score["loss"] * score["tokens"] / score["bytes"] / 0.693147, rel=1e-4
    )
    assert main(["eval", *what, "--all"]) == 0
    assert "bits per byte (" in capsys.readouterr().out


@pytest.mark.slow
def test_interrupted_and_resumed(run, texts, tmp_path, monkeypatch, capsys):
    from llama_nb.train import run as module

    out, step = tmp_path / "out", module.train_step
    calls = iter(range(100))

    def interrupted(*args, **options):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_step", interrupted)
        assert train(texts, out, *SCRATCH) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert not (out / "model").exists()
    assert train(texts, out, *SCRATCH, "--resume") == 0
    for ours, theirs in zip(logged(out), logged(run), strict=True):
        for name in ("step", "loss", "norm", "held"):
            assert ours.get(name) == theirs.get(name)
    assert train(texts, out, *SCRATCH, "--resume") == 0  # Nothing is left to do.


@pytest.mark.slow
def test_killed_in_another_process_and_resumed(run, texts, tmp_path):
    sizes = ["--batch", "4", "--context", "32", "--held-out", "0.2", "--save-every", "4"]
    command = [sys.executable, "-m", "llama_nb", "train", "--data", str(texts)]
    command += ["--out", str(tmp_path / "out"), *sizes, *SCRATCH, "--resume"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for line in child.stdout:
        if line.startswith("step 5 "):
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert [row["loss"] for row in logged(tmp_path / "out")] == [row["loss"] for row in logged(run)]


@pytest.mark.slow
@pytest.mark.parametrize("tune", [["lora", "--rank", "2"], ["norms"], ["full"]])
def test_fine_tuning(run, texts, tmp_path, capsys, tune):
    options = ["--model", str(run / "model"), "--steps", "3", "--tune", *tune]
    assert train(texts, tmp_path / "out", *options) == 0
    said = capsys.readouterr()
    assert ("numbers to train of" in said.err) == (tune != ["full"])
    model, _ = llama_nb.load(tmp_path / "out" / "model")
    assert model.config.vocab_size == 270


@pytest.mark.slow
def test_on_a_mesh_it_is_the_same_run(run, texts, tmp_path):
    assert train(texts, tmp_path / "out", *SCRATCH, "--mesh", "2x2", "--strategy", "fsdp_tp") == 0
    for ours, theirs in zip(logged(tmp_path / "out"), logged(run), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.slow
def test_conversations(chats, tmp_path, capsys):
    options = ["--model", "smollm2-135m", "--chat", "--tune", "norms", "--steps", "2"]
    assert train(chats, tmp_path / "out", *options, "--context", "96") == 0
    assert "held out: loss" in capsys.readouterr().out
    _, tokenizer = llama_nb.load(tmp_path / "out" / "model")
    assert tokenizer.chat_format == "chatml"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "0"], "no schedule"),
        (["--steps", "8", "--lr", "-1"], "the peak must be above 0"),
        (["--steps", "8", "--lr", "0"], "the peak must be above 0"),
        (["--steps", "8", "--batch", "3", "--accumulate", "2"], "can't be computed in 2 parts"),
        (["--steps", "8", "--keep", "some"], "keep 'some' is unknown"),
        (["--steps", "8", "--preset", "tinny"], "did you mean tiny"),
        (["--steps", "8", "--vocab", "100"], "a vocabulary of 100 is too small"),
        (["--steps", "8", "--vocab", "90000"], "and 90,000 was asked for"),
        (
            ["--steps", "8", "--context", "1024", "--vocab", "270"],
            "longer than this model's context",
        ),
        (
            ["--steps", "8", "--batch", "4000", "--vocab", "270"],
            "tokens to learn, less than a batch",
        ),
        (["--steps", "8", "--held-out", "2"], "it must be within 0 and 1"),
        (["--steps", "8", "--save-every", "0", "--vocab", "270"], "both must be 1 or more"),
        (["--steps", "8", "--tune", "lora"], "name it with --model"),
        (["--steps", "8", "--mesh", "3"], "mesh"),
        (["--steps", "8", "--model", "nowhere"], "nowhere"),
    ],
)
def test_refusals_are_one_sentence(texts, tmp_path, capsys, options, says):
    assert train(texts, tmp_path / "out", *options) == 2
    err = capsys.readouterr().err.splitlines()
    said = [line for line in err if line.startswith("llama-nb: ")]
    assert len(said) == 1 and says in said[0]
    assert not (tmp_path / "out" / "model").exists()


def test_targets_and_ranks_of_lora(run, texts, tmp_path, capsys):
    model = ["--steps", "2", "--model", str(run / "model"), "--tune", "lora"]
    for options, says in (
        (["--targets", "q_proj,w_proj"], "'w_proj' is no projection"),
        (["--rank", "0"], "rank is 0"),
        (["--rank", "64"], "a rank of 64 is more than v_proj has"),
        (["--tokenizer", "llama3"], "--model has its own"),
    ):
        assert train(texts, tmp_path / "out", *model, *options) == 2
        assert says in capsys.readouterr().err


def test_corpora_that_are_none(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("  \n")
    (tmp_path / "short.txt").write_text("a b c")
    for name, says in (
        ("empty", "holds no text"),
        ("blank.txt", "has no text to learn from"),
        ("nowhere.txt", "there is no file"),
        ("short.txt", "too small"),
    ):
        assert train(tmp_path / name, tmp_path / "out", *SCRATCH) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_that_are_taken(run, texts, tmp_path, capsys):
    assert train(texts, run, *SCRATCH) == 2
    assert "go on with --resume, or choose another folder" in capsys.readouterr().err
    assert train(texts, run, *SCRATCH, "--resume", "--seed", "1") == 2
    assert "settings.seed = 0, and 1 was asked for" in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text((texts / "0.txt").read_text() * 9)
    assert train(other, run, *SCRATCH, "--held-out", "0", "--resume") == 2
    assert "a run with" in capsys.readouterr().err
