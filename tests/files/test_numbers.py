"""Stored bits as numbers: torch says what they mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ders_core.files.dtype import Dtype
from ders_core.files.numbers import as_float32, rounded

READ = (Dtype.F32, Dtype.F16, Dtype.BF16, Dtype.F8_E4M3, Dtype.F8_E8M0)
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@pytest.mark.parametrize("dtype", READ)
def test_bits_mean_what_torch_reads(dtype: Dtype) -> None:
    """All bits of up to 16, and a sample of longer ones."""
    word, bits = WORDS[dtype.itemsize], 8 * dtype.itemsize
    if bits <= 16:
        words = np.arange(1 << bits).astype(word)
    else:
        words = np.random.default_rng(0).integers(0, 1 << bits, 1 << 12, word)
    wanted = torch.from_numpy(words.copy()).view(dtype.torch).float().numpy()
    assert np.array_equal(as_float32(words, dtype), wanted, equal_nan=True)


def test_other_dtypes_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="I32"):
        as_float32(np.zeros(3, np.uint32), Dtype.I32)


@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16, Dtype.BF16])
def test_rounding_is_that_of_torch(dtype: Dtype) -> None:
    """Also halfway between two numbers, and where numbers become subnormal."""
    exponents = np.arange(-26, 16)[:, None]
    steps = np.ldexp(1 + np.arange(1 << 12) / (1 << 12), exponents).astype(np.float32)
    values = np.concatenate([steps.ravel(), -steps.ravel(), [0.0]]).astype(np.float32)
    wanted = torch.from_numpy(values).to(dtype.torch).float().numpy()
    assert np.array_equal(rounded(values, dtype), wanted)
