"""Rounding with second moments: loops against torch bit by bit, and what experts share."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.codec_support import context, gauss, inputs, second_moments

from ders_core.codecs import Quantized
from ders_core.codecs.fitting import gptq
from ders_core.codecs.fitting.once import OfTheLast
from ders_core.compute import kernels, triangles


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 3, "group_size": 16},
        {"bits": 6, "grid": "normal", "group_size": 0},
        {"bits": 3, "grid": "affine", "group_size": 40},
        {"grid": "ternary", "group_size": 32},
    ],
    ids=str,
)
def test_loops_round_as_torch_does(monkeypatch: pytest.MonkeyPatch, fields: Any) -> None:
    """More rows than are rounded at once, more columns than a block; a block of zeros."""
    delta = gauss((67, 150), scale=1.0)
    delta[3, :48] = 0
    moments = second_moments(inputs(150))
    known = replace(context(torch.float32, 5), moments=moments)
    codec = Quantized(**fields)
    by_loops = codec.encode(delta, known)
    monkeypatch.setattr(kernels, "takes", lambda *tensors: False)
    in_torch = codec.encode(delta, known)
    for name, part in in_torch.items():
        assert torch.equal(part, by_loops[name]), name


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    """Larger than what is computed at once."""
    moments = second_moments(inputs(triangles.COLUMNS + 9))
    order, factor = gptq._compute_order_and_factor(moments)
    diagonal = moments.diagonal()[order]
    assert bool((diagonal.diff() <= 0).all())
    assert torch.equal(factor, factor.triu())
    damped = moments.double()[order][:, order]
    damped += gptq.DAMPING * moments.double().diagonal().mean() * torch.eye(len(order))
    unit = factor.double().T @ factor.double() @ damped
    torch.testing.assert_close(unit, torch.eye(len(order)).double(), rtol=0.0, atol=1e-4)


def test_what_experts_share_is_computed_once() -> None:
    calls = []

    def compute(tensor: torch.Tensor) -> float:
        calls.append(1)
        return float(tensor.sum())

    remembered, first, second = OfTheLast(compute), torch.ones(3), torch.ones(3)
    assert [remembered(first), remembered(first), remembered(second)] == [3.0] * 3
    assert len(calls) == 2
    del second
    gc.collect()
    assert remembered._last is None  # nor is the result kept longer than the tensor
