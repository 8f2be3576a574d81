"""Who takes part in eight_b.py: this book, and transformers.

A party gives, for a cell, a function that runs it once and returns its seconds: of a prompt, or of
a step. `room` is how many bytes are free for another cell.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import eight_b_weights as weights
import jax
import jax.numpy as jnp
import numpy as np
from eight_b_weights import PROBE, STD, filled, prompt, shapes_of

from llama_nb.config import LlamaConfig
from llama_nb.config_files import to_hf
from llama_nb.model import with_params
from llama_nb.session import Session


class Ours:
    """This book: `Session`, all steps of a cell in one dispatch."""

    quants = ("bfloat16", "int8")

    def __init__(self, config: LlamaConfig, quant: str, **_: Any):
        self.config, self.quant = config, quant
        self.model = with_params(config, filled(shapes_of(config, quant)))
        self.cache_dtype = "int8" if quant == "int8" else None

    @property
    def room(self) -> float:
        """Bytes that are free on the device."""
        return weights.room()

    def _session(self, capacity: int) -> Session:
        return Session(self.model, capacity, cache_dtype=self.cache_dtype)

    def logits(self) -> np.ndarray:
        """Return the logits of the token after the probe, shape (V,)."""
        return np.asarray(self._session(PROBE).feed([prompt(self.config, PROBE)])[0])

    def prefill(self, length: int) -> Callable[[], float]:
        """Return what reads one prompt into an empty cache, and says its seconds."""
        tokens = prompt(self.config, length)

        def run() -> float:
            session = self._session(length)
            begin = time.perf_counter()
            jax.block_until_ready(session.feed([tokens]))
            return time.perf_counter() - begin

        return run

    def decode(self, batch: int, context: int, steps: int) -> Callable[[], float]:
        """Return what adds `steps` tokens to a cache that is then full, and says seconds a step."""
        session = self._session(context)
        start = context - steps - 1
        session.cache = weights.random_cache(self.config, batch, session.slots, start, self.quant)
        logits = jnp.zeros((batch, self.config.vocab_size), jnp.float32)

        def run() -> float:
            session.used = start
            length = jnp.minimum(session.cache.length, np.int32(start))
            session.cache = dataclasses.replace(session.cache, length=length)
            rows = session.tokens(logits, steps + 1, chunk=max(2, steps))
            next(rows)
            begin = time.perf_counter()
            count = sum(1 for _ in rows)
            assert count == steps, f"{count} of {steps} steps ran"
            return (time.perf_counter() - begin) / steps

        return run


class Transformers:
    """Hugging Face's model: prefill as its `generate` does it, static cache, compiled decoding."""

    quants = ("bfloat16",)

    def __init__(self, config: LlamaConfig, quant: str, *, compiled: bool = True, **_: Any):
        import torch
        import transformers

        from llama_nb.checkpoint.names import entries

        self.torch, self.static_cache = torch, transformers.StaticCache
        self.config, self.compiled = config, compiled
        backend = jax.default_backend()
        if backend == "tpu":
            raise RuntimeError("torch does not reach this TPU")
        self.device = "cuda" if backend == "gpu" else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("this torch sees no GPU")
        hf = transformers.LlamaConfig.from_dict(to_hf(config))
        with torch.device("meta"):
            self.model = transformers.LlamaForCausalLM._from_config(
                hf, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        # Leaf by leaf: neither the device nor the host holds two models.
        named, state = {entry.path: entry for entry in entries(config)}, {}
        leaves = jax.tree_util.tree_flatten_with_path(shapes_of(config, "bfloat16"))[0]
        for seed, (path, leaf) in enumerate(leaves):
            entry = named[tuple(key.key for key in path)]
            drawn = weights.draw(seed, leaf.shape, leaf.dtype, weights.kind(path, leaf))
            state[entry.hf] = self._handed(jax.block_until_ready(drawn), entry)
        self.model.load_state_dict(state, strict=not config.tied, assign=True)
        if config.tied:
            self.model.tie_weights()
        # Frequencies are no weights: the model makes them, on a device that is none.
        rotary = type(self.model.model.rotary_emb)
        self.model.model.rotary_emb = rotary(hf).to(self.device)
        self.model.eval()

    def _handed(self, array: jax.Array, entry: Any) -> Any:
        tensor = self.torch.from_dlpack(array)
        if entry.outputs:  # (inputs, outputs) as here; they store (outputs, inputs).
            rows, columns = entry.stored_shape
            tensor = tensor.reshape(columns, rows).T
        return tensor.clone(memory_format=self.torch.contiguous_format)

    @property
    def room(self) -> float:
        """Bytes that are free on the device."""
        return self.torch.cuda.mem_get_info()[0] if self.device == "cuda" else weights.room()

    def _ids(self, rows: list[list[int]]) -> Any:
        return self.torch.tensor(rows, device=self.device)

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def logits(self) -> np.ndarray:
        """Return the logits of the token after the probe, shape (V,)."""
        with self.torch.inference_mode():
            out = self.model(self._ids([prompt(self.config, PROBE)]), logits_to_keep=1)
        return out.logits[0, -1].float().cpu().numpy()

    def prefill(self, length: int) -> Callable[[], float]:
        """Return what reads one prompt into an empty cache, and says its seconds."""
        ids = self._ids([prompt(self.config, length)])

        def run() -> float:
            with self.torch.inference_mode():
                self._wait()
                begin = time.perf_counter()
                self.model(ids, use_cache=True, logits_to_keep=1)
                self._wait()
                return time.perf_counter() - begin

        return run

    def decode(self, batch: int, context: int, steps: int) -> Callable[[], float]:
        """Return what adds `steps` tokens to a cache that is then full, and says seconds a step."""
        torch, config = self.torch, self.config
        cache = self.static_cache(config=self.model.config, max_cache_len=context)
        cache.early_initialization(
            batch, config.num_kv_heads, config.head_dim, torch.bfloat16, torch.device(self.device)
        )
        for layer in cache.layers:
            layer.keys.normal_(std=STD)
            layer.values.normal_(std=STD)

        def following(ids: Any) -> Any:
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            return out.logits[:, -1:].argmax(-1)

        if self.compiled:
            torch._dynamo.reset()
            mode = "reduce-overhead" if self.device == "cuda" else "default"
            following = torch.compile(following, mode=mode, fullgraph=True)

        def run() -> float:
            for layer in cache.layers:
                layer.cumulative_length.fill_(context - steps)
            ids = self._ids([[1]] * batch)
            # Compiled programs want plain tensors; no_grad rather than inference_mode.
            with torch.no_grad():
                self._wait()
                begin = time.perf_counter()
                for _ in range(steps):
                    torch.compiler.cudagraph_mark_step_begin()
                    ids = following(ids).clone()
                ids.cpu()
                return (time.perf_counter() - begin) / steps

        return run
