"""What codes of E4M3 and E2M1 mean, in Python's own float64: references for the quantized tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import HealthCheck, settings

E4M3 = torch.float8_e4m3fn


UNHURRIED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def e4m3(code: int) -> float:
    """What a code of E4M3 (OCP 8-bit floating point 1.0, "fn") means."""
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if sign else size


def e2m1(code: int) -> float:
    """What a code of E2M1 (OCP Microscaling 1.0, 5.3.3) means."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = mantissa * 0.5 if exponent == 0 else (2 + mantissa) * 2.0 ** (exponent - 2)
    return -size if sign else size


def nearest(value: float, meanings: Mapping[int, float]) -> int:
    """The code of the nearest number; of two equally near, the one with an even code."""
    sign = math.copysign(1.0, value)
    codes = [code for code, meaning in meanings.items() if math.copysign(1.0, meaning) == sign]
    return min(codes, key=lambda code: (abs(meanings[code] - value), code & 1))


FP8_MEANINGS = {code: e4m3(code) for code in range(256) if not math.isnan(e4m3(code))}


FP4_MEANINGS = {code: e2m1(code) for code in range(16)}


ALL_FP8 = torch.tensor(list(FP8_MEANINGS), dtype=torch.uint8).view(E4M3)
"""All 254 finite codes."""


def random_codes(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(ALL_FP8), shape, generator=source)
    return ALL_FP8.view(torch.uint8)[picked].view(E4M3)


def random_scales(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=source) * 1e-3 + 1e-5


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, so that -0 is not 0."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def by_element(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """float64, one element at a time."""
    bits, numbers = codes.view(torch.uint8).tolist(), scales.tolist()
    return torch.tensor(
        [
            [e4m3(code) * numbers[i // block[0]][j // block[1]] for j, code in enumerate(row)]
            for i, row in enumerate(bits)
        ],
        dtype=torch.float64,
    )


EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(16, 16)
"""[G, 16]: every pair of codes"""


def fp8_config(**settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "fp8", **settings}}
