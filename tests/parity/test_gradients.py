"""Our gradients against those of Hugging Face's model and torch, on the same weights and batch."""

import jax
import numpy as np
import pytest

from llama_nb.checkpoint import load_params, open_checkpoint
from llama_nb.data import Batch
from llama_nb.train import Recipe
from llama_nb.train.step import losses

pytestmark = pytest.mark.parity


def test_gradients(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=128,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    ).float()
    reference.save_pretrained(tmp_path / "model")
    rows = torch.randint(0, 128, (3, 33))
    reference(rows, labels=rows).loss.backward()

    checkpoint = open_checkpoint(tmp_path / "model")
    config, tokens = checkpoint.config, rows.numpy()
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    recipe = Recipe(dtype="float32")

    def loss(params):
        return losses(params, batch, config=config, layout=None, recipe=recipe)[0].mean()

    found = jax.jit(jax.grad(loss))(load_params(checkpoint, np.float32))
    compared = 0
    for name, weight in reference.named_parameters():
        ours, theirs = _ours(found, name), weight.grad.numpy()
        ours = np.asarray(ours).reshape(theirs.T.shape).T if "proj" in name else np.asarray(ours)
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max(), name
        compared += 1
    assert compared == len(jax.tree.leaves(found)) == 3 + 9 * 3


def _ours(gradients, name):
    """Return our gradient of a parameter by its name there."""
    if name == "lm_head.weight":
        return gradients["lm_head"]
    renamed = {"self_attn": "attn", "embed_tokens": "embed"}
    renamed |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    for part in name.split(".")[1:-1]:
        gradients = gradients[int(part) if part.isdigit() else renamed.get(part, part)]
    return gradients
