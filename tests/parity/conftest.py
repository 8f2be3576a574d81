"""References that nobody here wrote, built once per run."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def smollm2_path():
    from llama_nb import assets

    return assets.fetch(assets.SMOLLM2)


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    """Our model and tokenizer, float32."""
    import jax.numpy as jnp

    import llama_nb

    model, tokenizer = llama_nb.load(smollm2_path, dtype=jnp.float32)
    return SimpleNamespace(model=model, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def hf_smollm2(smollm2_path):
    """The same file in Hugging Face's implementation, float32."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    where = {"gguf_file": smollm2_path.name, "local_files_only": True}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = str(smollm2_path.parent)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def greedy():
    """Return a function: the likeliest tokens after a prompt, by our model and by the reference.

    The reference reads ours in one pass. Where they differ it had written another text; where every
    token is the likeliest after those before it, its own greedy decoding writes the same.
    """
    import torch

    from llama_nb.session import Session

    def both(model, reference, ids, count):
        session = Session(model, len(ids) + count)
        ours = [int(token[0]) for token in session.tokens(session.feed([ids]), count)]
        with torch.no_grad():
            logits = reference(torch.tensor([ids + ours[:-1]])).logits[0, len(ids) - 1 :]
        return ours, logits.argmax(-1).tolist()

    return both


@pytest.fixture(scope="session")
def meta():
    """Meta's model code on one process: returns a function from sizes to a random Transformer."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    pytest.importorskip("llama_models", reason="the reference is llama_models")
    parallel = pytest.importorskip("fairscale.nn.model_parallel.initialize")
    import tempfile

    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        parallel.initialize_model_parallel(1)

        def build(seed=0, **sizes):
            torch.manual_seed(seed)
            model = Transformer(ModelArgs(max_batch_size=4, **sizes))
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "norm" in name:
                        weight.uniform_(0.5, 1.5)
                    else:
                        weight.normal_(0, 0.05)
            return model

        yield build
        parallel.destroy_model_parallel()
        torch.distributed.destroy_process_group()
