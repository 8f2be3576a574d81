"""int8 in a Hugging Face folder, as the `compressed-tensors` library lays it out.

A quantized matrix `NAME.weight` is I8, (outputs, inputs), beside it `NAME.weight_scale`, F32,
(outputs, 1), and `config.json` says so under `quantization_config`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_nb.errors import CorruptFileError, InputError

_WEIGHTS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
}
_FORMATS = ("naive-quantized", "int-quantized")  # one layout, two names


def scale_name(name: str) -> str:
    """Return the name of the scales that belong to a weight."""
    return name + "_scale"


def describe(tied: bool) -> dict[str, Any]:
    """Return the `quantization_config` of a model whose projections are int8.

    Parameters
    ----------
    tied
        Whether the head is the embedding, which stays as it is.
    """
    group = {
        "targets": ["Linear"],
        # Also here: of weights without activations the library would assume that they are packed.
        "format": _FORMATS[0],
        "weights": dict(_WEIGHTS),
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[0],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"] if tied else [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def require(quantization: Any, where: str) -> None:
    """Refuse a `quantization_config` of any other kind.

    Raises
    ------
    InputError
        Naming the file and the kind.
    """
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method == "compressed-tensors" and quantization.get("format") in _FORMATS:
        groups = quantization.get("config_groups")
        groups = groups.values() if isinstance(groups, Mapping) else ()
        if groups and all(map(_is_int8_by_channel, groups)):
            return
        method = "compressed-tensors, but not int8 weights with one scale per channel"
    raise InputError(
        f"{where} describes quantized weights ({method or 'of an unknown kind'}); only int8 as "
        "'llama-nb convert --quant int8' writes it can be read, so use the unquantized model."
    )


def _is_int8_by_channel(group: Any) -> bool:
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        return False
    weights = {"dynamic": False, **group["weights"]}
    plain = not group.get("input_activations") and not group.get("output_activations")
    return plain and all(weights.get(key) == value for key, value in _WEIGHTS.items())


def check_scales(scales: np.ndarray, rows: int, where: str) -> np.ndarray:
    """Return scales as float32, shape (rows,), if they can be ones.

    Raises
    ------
    CorruptFileError
        When there are more or fewer than rows, or one is NaN, infinite, zero or negative.
    """
    if scales.shape not in ((rows,), (rows, 1)):
        raise CorruptFileError(f"{where} has shape {scales.shape}, but its weight has {rows} rows.")
    scales = scales.reshape(rows).astype(np.float32)
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise CorruptFileError(
            f"{where} holds {scales[row]} (row {row}); a scale is finite and above 0, so the file "
            "is damaged: fetch or convert it again."
        )
    return scales
