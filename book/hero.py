"""Draw the README's picture, and the cover's three, from a real run: `python book/hero.py`."""

import json
from pathlib import Path

from llama_nb.devices import prefer_cpu_if_alone

prefer_cpu_if_alone()

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import llama_nb
from llama_nb import figures, layers
from llama_nb.model import params_of

HERE = Path(__file__).parent
QUESTION = "What is the capital of France?"
STORY = "Tom has a red ball and Anna has a blue ball. Tom's ball is red and Anna's ball is"


def attention_maps(model, ids):
    """Return every head's weights, shape (L, N, T, T)."""
    config, maps = model.config, []

    def attend(q, k, v):
        T = q.shape[1]
        mask = layers.causal_mask(jnp.zeros(1, jnp.int32), 0, T, T)
        spread = jnp.repeat(k, config.group_size, axis=2)
        scores = jnp.einsum("btnh,bsnh->bnts", q, spread) / config.head_dim**0.5
        maps.append(jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))[0])
        return layers.attention(q, k, v, mask)

    x = params_of(model)["embed"][jnp.array([ids])]
    cos, sin = model.angles(jnp.arange(len(ids))[None])
    for block in model.layers:
        x = block(x, cos, sin, attend)
    return np.stack(maps)


def draw_chat(ax, answer):
    """Write question and answer."""
    ax.axis("off")
    ax.set_title("It talks")
    for y, who, text, color in (
        (0.84, "you", QUESTION, figures.BLUE),
        (0.50, "llama_nb", answer, figures.GREEN),
    ):
        box = {"boxstyle": "round,pad=0.6", "facecolor": color + "22", "edgecolor": color}
        ax.text(0, y, who, color=color, weight="bold", fontsize=9.5, transform=ax.transAxes)
        ax.text(0.04, y - 0.13, text, transform=ax.transAxes, fontsize=11.5, va="center", bbox=box)
    note = "SmolLM2-135M, a true Llama,\nwritten in JAX, on two CPU cores"
    ax.text(0, 0.02, note, color="#555555", fontsize=9.5, transform=ax.transAxes)


def draw_map(ax, model, tokenizer):
    """Draw the head that finds the colour."""
    ids = tokenizer.encode(STORY)
    names = [tokenizer.token_text(token).strip() for token in ids]
    maps = attention_maps(model, ids)
    layer, head = np.unravel_index(maps[:, :, -1, names.index("blue")].argmax(), maps.shape[:2])
    ax.imshow(maps[layer, head], vmin=0, vmax=1, cmap=figures.SEQUENTIAL)
    ax.set_xticks(range(len(ids)), names, rotation=90, fontsize=6.5)
    ax.set_yticks(range(len(ids)), names, fontsize=6.5)
    ax.set(xlabel="token looked at", ylabel="token that looks")
    ax.grid(False)
    ax.set_title(f"You look inside: layer {layer}, head {head}")


def draw_speed(ax):
    """Draw the measured decode rates."""
    figures_ = json.loads((HERE.parent / "benchmarks/results/generate_cpu.json").read_text())
    rates = figures_["decode_tokens_per_s"]
    names = ["transformers", "llama_nb", "memory's\nlimit"]
    values = [rates["transformers"], rates["ours"], figures_["limit"]["tokens_per_s"]]
    drawn = ax.bar(names, values, color=[figures.GREY, figures.BLUE, figures.SKY], width=0.65)
    ax.bar_label(drawn, [f"{value:.0f}" for value in values], padding=2)
    ax.set_ylabel("tokens per second")
    ax.margins(y=0.12)
    ax.grid(axis="x", visible=False)
    cores = figures_["machine"]["cores"]
    ax.set_title(f"You measure: decoding, {cores} CPU cores")


def save(fig, name):
    """Write a picture; the same one gives the same file."""
    plt.rcParams["svg.hashsalt"] = name
    fig.savefig(HERE / "_static" / f"{name}.svg", metadata={"Date": None})
    plt.close(fig)


def main():
    """Run the model and write the pictures."""
    figures.use()
    model, tokenizer = llama_nb.load("smollm2-135m", dtype=jnp.float32)
    answer = llama_nb.generate(model, tokenizer, QUESTION, chat=True)
    panels = {
        "talk": lambda ax: draw_chat(ax, answer),
        "look": lambda ax: draw_map(ax, model, tokenizer),
        "measure": draw_speed,
    }
    fig, axes = plt.subplots(1, 3, figsize=(12.4, 3.7), width_ratios=[0.85, 1.1, 0.9])
    for ax, draw in zip(axes, panels.values(), strict=True):
        draw(ax)
    save(fig, "hero")
    for name, draw in panels.items():
        fig, ax = plt.subplots(figsize=(3.3, 3.3))
        draw(ax)
        save(fig, f"hero-{name}")


if __name__ == "__main__":
    main()
