"""Decode, prefill and first token on a CPU, beside transformers and the memory's limit.

Same weights (the default model's GGUF file, float32), same threads, same prompts, one run, turn by
turn. The floor: a decoded token reads every weight once (bytes below) plus the cache, so no
implementation that keeps float32 weights beats `bytes / bandwidth`; the bandwidth is that of a
matrix-vector product over a matrix of the same total size, measured between the turns.

    python benchmarks/generate_cpu.py [--rounds 5] [--save]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import machine  # after the platform is chosen

QUESTION = "Explain in detail how a llama differs from an alpaca."
NEW_TOKENS = 64
PREFILL_TOKENS = 512


def main() -> None:
    """Measure, print a table, and keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/generate_cpu.json")
    parser.add_argument("--first-token", choices=["ours", "peer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_token:
        print(json.dumps(_first_token(options.first_token)))
        return
    figures = {**_rates(options.rounds), "first_token_s": _first_tokens()}
    print(f"\n{'':34}{'ours':>10}{'transformers':>14}{'ratio':>8}")
    decode, prefill = figures["decode_tokens_per_s"], figures["prefill_512_s"]
    first = figures["first_token_s"]
    rows = [
        ("decode, tokens/s", decode["ours"], decode["transformers"], decode["ratio"]),
        ("prefill of 512 tokens, s", prefill["ours"], prefill["transformers"], prefill["ratio"]),
        (
            "first token after load, s",
            first["ours"],
            first["transformers"],
            first["transformers"] / first["ours"],
        ),
    ]
    for name, ours, peer, ratio in rows:
        print(f"{name:34}{ours:10.3f}{peer:14.3f}{ratio:8.2f}")
    print(
        f"the first call of a run compiles: {first['ours_first_call']:.3f} s, or "
        f"{first['ours_first_call_cached']:.3f} s where an earlier run has"
    )
    limit = figures["limit"]
    print(
        f"limit: {limit['bytes_per_token'] / 1e6:.0f} MB per token at "
        f"{limit['bandwidth_gb_per_s']:.1f} GB/s allow {limit['tokens_per_s']:.1f} tokens/s; "
        f"reached {limit['reached']:.2f}"
    )
    if options.save:
        print("kept in", machine.save("generate_cpu", figures))


def _load_ours():
    import jax.numpy as jnp

    import llama_nb

    return llama_nb.load("smollm2-135m", dtype=jnp.float32)


def _load_peer():
    import torch
    import transformers

    from llama_nb import assets

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    path = assets.fetch(assets.SMOLLM2)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, local_files_only=True
    ).eval()


def _rates(rounds: int) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from llama_nb.generation import encode_prompt
    from llama_nb.session import Session

    model, tokenizer = _load_ours()
    peer = _load_peer()
    prompt = encode_prompt(tokenizer, QUESTION, chat=True)
    long = (prompt * (PREFILL_TOKENS // len(prompt) + 1))[:PREFILL_TOKENS]

    def ours_decode():
        session = Session(model, len(prompt) + NEW_TOKENS)
        logits, ids, start = session.feed([prompt]), [], 0.0
        for token in session.tokens(logits, NEW_TOKENS):
            start = start or time.perf_counter()
            ids.append(int(token[0]))
        return (NEW_TOKENS - 1) / (time.perf_counter() - start), ids

    @torch.inference_mode()
    def peer_decode():
        # The loop of `generate` without its bookkeeping: the faster way to drive the peer.
        out = peer(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        ids = [int(out.logits[0, -1].argmax())]
        start = time.perf_counter()
        for _ in range(NEW_TOKENS - 1):
            out = peer(torch.tensor([ids[-1:]]), past_key_values=out.past_key_values)
            ids.append(int(out.logits[0, -1].argmax()))
        return (NEW_TOKENS - 1) / (time.perf_counter() - start), ids

    def ours_prefill():
        session = Session(model, 1024)
        start = time.perf_counter()
        jax.block_until_ready(session.feed([long]))
        return time.perf_counter() - start

    @torch.inference_mode()
    def peer_prefill():
        start = time.perf_counter()
        peer(torch.tensor([long]), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    count = model.config.param_count()
    matrix = jnp.asarray(np.random.default_rng(0).random((count // 1024, 1024), np.float32))
    product = jax.jit(jnp.matmul)
    vector = jnp.ones(1024)

    def bandwidth():
        start = time.perf_counter()
        for _ in range(5):
            product(matrix, vector).block_until_ready()
        return 5 * matrix.nbytes / (time.perf_counter() - start) / 1e9

    turns = {
        "ours": lambda: ours_decode()[0],
        "transformers": lambda: peer_decode()[0],
        "ours_prefill": ours_prefill,
        "transformers_prefill": peer_prefill,
        "bandwidth": bandwidth,
    }
    assert ours_decode()[1] == peer_decode()[1], "not the same tokens: nothing to compare"
    seen = {name: [] for name in turns}
    for turn in turns.values():
        turn()  # warm
    for index in range(rounds):
        for name, turn in turns.items():
            seen[name].append(turn())
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
    middle = {name: statistics.median(values) for name, values in seen.items()}
    cache = model.config.cache_bytes_per_token(itemsize=4) * (len(prompt) + NEW_TOKENS // 2)
    per_token = 4 * count + cache
    allowed = middle["bandwidth"] * 1e9 / per_token
    return {
        "prompt_tokens": len(prompt),
        "new_tokens": NEW_TOKENS,
        "rounds": rounds,
        "decode_tokens_per_s": {
            "ours": middle["ours"],
            "transformers": middle["transformers"],
            "ratio": middle["ours"] / middle["transformers"],
            "all": {"ours": seen["ours"], "transformers": seen["transformers"]},
        },
        "prefill_512_s": {
            "ours": middle["ours_prefill"],
            "transformers": middle["transformers_prefill"],
            "ratio": middle["transformers_prefill"] / middle["ours_prefill"],
        },
        "limit": {
            "bytes_per_token": per_token,
            "bandwidth_gb_per_s": middle["bandwidth"],
            "bandwidth_all": seen["bandwidth"],
            "tokens_per_s": allowed,
            "reached": middle["ours"] / allowed,
        },
    }


def _first_token(who: str) -> list[float]:
    """Return the seconds from a loaded model to its first token, four times, in this process."""
    if who == "ours":
        import llama_nb

        model, tokenizer = _load_ours()
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            next(llama_nb.stream(model, tokenizer, QUESTION, chat=True, max_new_tokens=NEW_TOKENS))
            seconds.append(time.perf_counter() - start)
        return seconds
    import torch

    from llama_nb import assets
    from llama_nb import tokenizer as tokenizers
    from llama_nb.generation import encode_prompt

    peer = _load_peer()
    tokenizer = tokenizers.load(assets.fetch(assets.SMOLLM2))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        ids = torch.tensor([encode_prompt(tokenizer, QUESTION, chat=True)])
        # `generate` as a reader calls it; it returns after the one token asked for.
        peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        seconds.append(time.perf_counter() - start)
    return seconds


def _first_tokens() -> dict[str, float]:
    """Measure first tokens in processes of their own: nothing warm but the file cache."""

    def run(who: str, cache: str) -> list[float]:
        command = [sys.executable, __file__, "--first-token", who]
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as cache:
        never, before, peer = run("ours", cache), run("ours", cache), run("peer", cache)
    return {
        "ours": statistics.median(before[1:]),
        "transformers": statistics.median(peer[1:]),
        "ours_first_call": never[0],
        "ours_first_call_cached": before[0],
        "transformers_first_call": peer[0],
    }


if __name__ == "__main__":
    main()
