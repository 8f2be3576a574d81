"""jax-ml's public Llama 3 example as a party of eight_b.py."""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import eight_b_weights as weights
import jax
import numpy as np
from eight_b_weights import PROBE, filled, prompt, shapes_of

from llama_nb.config import LlamaConfig
from llama_nb.config_files import to_hf


class JaxMl:
    """The Llama 3 of github.com/jax-ml/jax-llm-examples, from a checkout; its attention by XLA.

    Its kernels are for TPUs; its int8 scales lie along other axes, so bfloat16 is what compares.
    """

    quants = ("bfloat16",)

    def __init__(self, config: LlamaConfig, quant: str, *, jax_ml: str | None = None, **_: Any):
        if jax_ml is None:
            raise RuntimeError("pass --jax-ml DIR, a checkout of jax-ml/jax-llm-examples")
        if config.tied:
            raise RuntimeError("it has no tied head")
        sys.path.insert(0, f"{jax_ml}/llama3")
        from llama3_jax import model as theirs

        self.theirs, self.config = theirs, config
        axes = (jax.sharding.AxisType.Explicit,) * 3
        self.mesh = jax.make_mesh(
            (1, 1, 1), ("x", "y", "z"), axis_types=axes, devices=jax.devices()[:1]
        )
        hf = to_hf(config)
        plain = {  # A factor of 1 changes nothing.
            "factor": 1.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        hf["rope_scaling"] = hf.get("rope_scaling") or plain
        self.cfg = dataclasses.replace(
            theirs.llama_to_jax_config(hf),
            mesh=self.mesh,
            quant_layer=False,
            quant_cache=False,
            use_decode_attn_kernel=jax.default_backend() == "tpu",
            use_prefill_attn_kernel=jax.default_backend() == "tpu",
        )
        params = filled(shapes_of(config, "bfloat16"))
        layers = [
            theirs.Layer(
                *(layer["attn"][f"{name}_proj"] for name in "qkvo"),
                *(layer["mlp"][f"{name}_proj"] for name in ("gate", "up", "down")),
                layer["attn_norm"],
                layer["mlp_norm"],
            )
            for layer in params["layers"].values()
        ]
        head = params.pop("lm_head").T
        theirs_weights = theirs.Weights(layers, params["embed"], params["norm"], head)
        places = theirs.Weights.shardings(self.cfg)
        self.weights = jax.tree.map(jax.device_put, theirs_weights, places)

    @property
    def room(self) -> float:
        """Bytes that are free on the device."""
        return weights.room()

    def _with_cache(self, batch: int, slots: int) -> tuple[Any, Any]:
        cfg = dataclasses.replace(self.cfg, max_seq_len=slots)
        return cfg, self.theirs.KVCache.init(jax.random.key(0), cfg, batch)

    def _read(self, length: int) -> tuple[Any, float]:
        tokens = np.array([prompt(self.config, length)])
        with jax.sharding.set_mesh(self.mesh):
            cfg, cache = self._with_cache(1, length)
            jax.block_until_ready(cache)
            begin = time.perf_counter()
            _, logits, _ = self.theirs.prefill(tokens, self.weights, cache, cfg)
            jax.block_until_ready(logits)
            return logits, time.perf_counter() - begin

    def logits(self) -> np.ndarray:
        """Return the logits of the token after the probe, shape (V,)."""
        return np.asarray(self._read(PROBE)[0][0, -1], np.float32)

    def prefill(self, length: int) -> Callable[[], float]:
        """Return what reads one prompt into an empty cache, and says its seconds."""
        return lambda: self._read(length)[1]

    def decode(self, batch: int, context: int, steps: int) -> Callable[[], float]:
        """Return what adds `steps` tokens to a cache that is then full, and says seconds a step."""
        with jax.sharding.set_mesh(self.mesh):
            cfg, cache = self._with_cache(batch, context)
        arrays = {"k": cache.k, "v": cache.v}
        random = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding), filled(arrays), arrays
        )
        cache = dataclasses.replace(cache, **random)

        def run() -> float:
            nonlocal cache
            start = jax.device_put(np.int32(context - steps - 1), cache.iter.sharding)
            cache = dataclasses.replace(cache, iter=start)
            with jax.sharding.set_mesh(self.mesh):
                replicated = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
                tokens = jax.device_put(np.ones((batch, 1), np.int32), replicated)
                begin = time.perf_counter()
                for _ in range(steps):
                    tokens, cache = self.theirs.decode_step(tokens, self.weights, cache, cfg)
                np.asarray(tokens)
                return (time.perf_counter() - begin) / steps

        return run
