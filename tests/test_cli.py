"""The command line in this process: what it prints and how it refuses."""

import subprocess
import sys

import pytest

from llama_nb.__main__ import main


def test_info(capsys):
    assert main(["info", "--model", "llama3.1-8b"]) == 0
    out = capsys.readouterr().out
    assert "8,030,261,248" in out and "16,060,522,496" in out and "131,072 tokens" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "--model", "smolm2-135m"], "did you mean smollm2-135m"),
        (["generate", "a", "--model", "lama3-8b"], "did you mean llama3-8b"),
        (["generate", "a", "--model", "llama3.1-70b"], "not fetched by name"),
        (["generate", "a", "--model", "nowhere/model.gguf"], "nowhere/model.gguf"),
        (["generate", ""], "empty"),
        (["generate", "a", "--top-p", "0"], "top_p is 0.0"),
        (["generate", "a", "--top-p", "1.5"], "top_p is 1.5"),
        (["generate", "a", "--top-k", "-1"], "top_k is -1"),
        (["generate", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "a", "--max-new-tokens", "0"], "1 or more"),
        (["generate", "a", "--chunk", "0"], "--chunk is 0; it must be 1 or more"),
        (["generate", "a", "--seed", "-3"], "seed is -3"),
    ],
)
def test_refusals_are_one_sentence(capsys, arguments, says):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err
    assert err.startswith("llama-nb: ") and err.count("\n") == 1


def test_a_file_that_is_no_model(capsys, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"hello")
    assert main(["generate", "a", "--model", str(tmp_path / "x.gguf")]) == 2
    assert "not a GGUF file" in capsys.readouterr().err
    assert main(["generate", "a", "--model", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_unknown_options_exit_with_2():
    with pytest.raises(SystemExit) as caught:
        main(["generate"])
    assert caught.value.code == 2


def test_importing_the_package_imports_nothing_heavy():
    code = "import llama_nb, sys; print({'jax', 'flax', 'numpy', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_exist():
    import llama_nb

    for name in llama_nb.__all__:
        assert getattr(llama_nb, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llama_nb.nothing
