"""The dtype in which a model is computed: `auto` takes one that the device multiplies fast.

Most desktop CPUs have no instructions for bfloat16. There torch multiplies bfloat16 matrices with a
plain loop, 4 to 30 times slower than float32 ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ders_core.compute.memory import free_memory
from ders_core.errors import DersError

DTYPES: Mapping[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The words that name a dtype of computation; None leaves it to `auto_dtype`."""

INSTRUCTIONS: Mapping[torch.dtype, tuple[str, ...]] = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""The instructions of CPUs that multiply a dtype of 16 bits, by torch's names for them."""

HEADROOM = 1.25
"""Free memory that a model in float32 must leave, relative to its weights, for activations."""


def parse_dtype(name: str) -> torch.dtype | None:
    """The dtype of a word of `DTYPES`; None for `auto`. Raises DersError for another word."""
    if name not in DTYPES:
        raise DersError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_label(dtype: torch.dtype) -> str:
    """Text such as 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions that multiply matrices of this dtype."""
    if dtype not in INSTRUCTIONS:
        return True
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    known = _cpu_capabilities()
    # without oneDNN, torch does not use the instructions even where the CPU has them
    return torch.backends.mkldnn.is_available() and any(
        known.get(name) for name in INSTRUCTIONS[dtype]
    )


def auto_dtype(stored: torch.dtype, values: int, device: torch.device) -> torch.dtype:
    """The dtype in which `auto` computes a model with `values` weights that is stored in `stored`.

    `stored` where the device multiplies it. Elsewhere float32, which takes 4 bytes a weight, twice
    as much as 16 bits; if the free memory does not hold that, `stored` nevertheless.
    """
    if multiplies(stored, device):
        return stored
    needed = HEADROOM * torch.float32.itemsize * values
    return torch.float32 if needed <= free_memory(device) else stored


def _cpu_capabilities() -> Mapping[str, Any]:
    """The instructions of this CPU by torch's names."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        capabilities: Mapping[str, Any] = ask()
        return capabilities
    # torch before 2.12 tells of these two alone
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return {"avx512_bf16": has_bf16(), "amx_bf16": has_amx()}
