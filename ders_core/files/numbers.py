"""Stored bits as float32 numbers in numpy, for the few values that are looked at without torch."""

from __future__ import annotations

from ders_core.files.dtype import Dtype
from ders_core.later import np

WORDS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
"""Bytes of an element -> numpy's dtype of that size, for dtypes that numpy does not have."""


def as_float32(words: np.ndarray, dtype: Dtype) -> np.ndarray:
    """The numbers, of the same shape, of a dtype that weights or scales of experts may have.

    words: unsigned integers of the dtype's size, contiguous. Raises ValueError for other dtypes.
    """
    numbers: np.ndarray
    match dtype:
        case Dtype.F32:
            numbers = words.view(np.float32)
        case Dtype.F16:
            numbers = words.view(np.float16).astype(np.float32)
        case Dtype.BF16:
            numbers = (words.astype(np.uint32) << 16).view(np.float32)
        case Dtype.F8_E4M3:
            numbers = _e4m3()[words]
        case Dtype.F8_E8M0:
            numbers = powers_of_two(words)
        case _:
            raise ValueError(f"{dtype.name} is not read as numbers here")
    return numbers


def powers_of_two(exponents: np.ndarray) -> np.ndarray:
    """2^(byte − 127) of uint8 exponents; NaN for 255."""
    powers = np.ldexp(np.float32(1), np.minimum(exponents, 254).astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), powers)


def rounded(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Finite float32 values rounded to what float32, float16 or bfloat16 holds, ties to even; as
    float32."""
    if dtype is Dtype.F16:
        with np.errstate(over="ignore"):  # beyond float16: infinite, as in torch
            return values.astype(np.float16).astype(np.float32)
    if dtype is Dtype.BF16:
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return values


def _e4m3() -> np.ndarray:
    """The 256 numbers of float8_e4m3fn: a sign, 4 bits of exponent, 3 of fraction; no infinity."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    sizes = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    sizes[codes & 127 == 127] = np.nan
    return np.where(codes < 128, sizes, -sizes).astype(np.float32)
