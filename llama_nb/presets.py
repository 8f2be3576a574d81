"""The Llamas by name: `presets.get("llama3.1-8b")`."""

import dataclasses
import difflib

from llama_nb.config import LlamaConfig, RopeScaling, llama_ffn_dim
from llama_nb.errors import InputError


def _llama1(D: int, L: int, N: int, eps: float = 1e-6) -> LlamaConfig:
    return LlamaConfig(
        32_000, D, llama_ffn_dim(D, 256), L, N, N, D // N, context=2048, norm_eps=eps
    )


def _llama2(D: int, L: int, N: int, K: int, F: int) -> LlamaConfig:
    return LlamaConfig(32_000, D, F, L, N, K, D // N, context=4096)


def _llama3(D: int, L: int, N: int, F: int, H: int = 128) -> LlamaConfig:
    return LlamaConfig(128_256, D, F, L, N, 8, H, context=8192, rope_theta=500_000.0)


def _longer(config: LlamaConfig, factor: float = 8.0, tied: bool = False) -> LlamaConfig:
    scaling = RopeScaling(factor=factor)
    return dataclasses.replace(config, context=131_072, rope_scaling=scaling, tied=tied)


def _smollm2(D: int, L: int, N: int, K: int, F: int, theta: float = 100_000.0) -> LlamaConfig:
    return LlamaConfig(49_152, D, F, L, N, K, 64, context=8192, rope_theta=theta, tied=True)


_LLAMA3_8B = _llama3(4096, 32, 32, llama_ffn_dim(4096, 1024, 1.3))
_LLAMA3_70B = _llama3(8192, 80, 64, llama_ffn_dim(8192, 4096, 1.3))

PRESETS: dict[str, LlamaConfig] = {
    # A few thousand parameters that still have every feature: grouped heads and an untied head.
    "tiny": LlamaConfig(256, 64, 176, 2, 4, 2, 16, context=512),
    "llama1-7b": _llama1(4096, 32, 32),
    "llama1-13b": _llama1(5120, 40, 40),
    "llama1-30b": _llama1(6656, 60, 52),
    "llama1-65b": _llama1(8192, 80, 64, eps=1e-5),
    "llama2-7b": _llama2(4096, 32, 32, 32, llama_ffn_dim(4096, 256)),
    "llama2-13b": _llama2(5120, 40, 40, 40, llama_ffn_dim(5120, 256)),
    "llama2-70b": _llama2(8192, 80, 64, 8, llama_ffn_dim(8192, 4096, 1.3)),
    "llama3-8b": _LLAMA3_8B,
    "llama3-70b": _LLAMA3_70B,
    "llama3.1-8b": _longer(_LLAMA3_8B),
    "llama3.1-70b": _longer(_LLAMA3_70B),
    "llama3.1-405b": _longer(_llama3(16_384, 126, 128, llama_ffn_dim(16_384, 4096, 1.2))),
    "llama3.2-1b": _longer(
        _llama3(2048, 16, 32, llama_ffn_dim(2048, 256, 1.5), H=64), factor=32.0, tied=True
    ),
    "llama3.2-3b": _longer(
        _llama3(3072, 28, 24, llama_ffn_dim(3072, 256, 1.0)), factor=32.0, tied=True
    ),
    "llama3.3-70b": _longer(_LLAMA3_70B),
    "deepseek-r1-distill-llama-8b": _longer(_LLAMA3_8B),
    "deepseek-r1-distill-llama-70b": _longer(_LLAMA3_70B),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, theta=130_000.0),
}


def get(name: str) -> LlamaConfig:
    """Return the preset of that name.

    Raises
    ------
    InputError
        When there is none; the message names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(PRESETS)}."
    raise InputError(f"there is no model named {name!r}; {hint}")
