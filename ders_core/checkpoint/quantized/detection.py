"""The scheme in which a checkpoint's weights are stored, by its config.json and its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ders_core.checkpoint.quantized.fp8 import Fp8
from ders_core.checkpoint.quantized.mxfp4 import Mxfp4
from ders_core.checkpoint.quantized.refused import refuse_method, refuse_tensors
from ders_core.checkpoint.quantized.scheme import Scheme, one_of_each
from ders_core.errors import CheckpointError
from ders_core.files.tensor import TensorReader

SCHEMES: tuple[type[Scheme], ...] = (Fp8, Mxfp4)

OURS = "ders"
"""The quant_method of packed checkpoints."""

CONFIG_KEYS = ("quantization_config", "compression_config")


def detect(config: Mapping[str, Any], tensors: Mapping[str, TensorReader]) -> Scheme | None:
    """The scheme in which the weights are stored, or None if they are plain numbers.

    The tensors decide, since a config may lack the entry. Raises CheckpointError for a format that
    is not read, named by the config or shown by the tensors, and for scales that are missing or do
    not fit.
    """
    quantization = declared(config)
    method = method_of(quantization)
    if method == OURS:
        return None
    if method is not None and not any(method in scheme.methods for scheme in SCHEMES):
        refuse_method(method)
    kinds = one_of_each(tensors)
    refuse_tensors(tensors, kinds)
    schemes = [scheme for scheme in SCHEMES if scheme.is_in(kinds)]
    if len(schemes) > 1:
        names = " and ".join(scheme.name for scheme in schemes)
        raise CheckpointError(
            f"the checkpoint mixes {names} weights, which is not read; give the bfloat16, float16 "
            "or float32 original"
        )
    if not schemes:
        return None
    scheme = schemes[0].of({**quantization, "quant_method": method})
    scheme.weights(tensors)
    return scheme


def declared(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's entry on quantization, also one within a text_config or the like; or {}."""
    return next((entry for entry in _entries(config) if method_of(entry) is not None), {})


def method_of(quantization: Mapping[str, Any]) -> str | None:
    """The method's name in lower case, also if only its settings show it."""
    method = quantization.get("quant_method")
    if isinstance(method, str) and method:
        return method.lower()
    if any(quantization.get(key) is True for key in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"
    return "modelopt" if "quant_algo" in quantization else None


def _entries(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in CONFIG_KEYS:
        if isinstance(config.get(key), Mapping):
            yield config[key]
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in CONFIG_KEYS:
            yield from _entries(value)
