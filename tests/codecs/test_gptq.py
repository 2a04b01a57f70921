"""Rounding with second moments: loops against torch bit by bit, and what experts share."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.codec_support import context, gauss, inputs, second_moments

from ders_core.codecs import DeltaCodec, Quantized
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.entropy import Entropy
from ders_core.codecs.fitting import definite, gptq
from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import Lines
from ders_core.codecs.fitting.levels import levels_of
from ders_core.codecs.fitting.once import OfTheLast
from ders_core.codecs.fitting.row_rounding import MadeUpFor
from ders_core.codecs.lowrank import LowRank
from ders_core.compute import kernels, triangles
from ders_core.errors import CodecError


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
    turns = gptq.turns_of(moments)
    order, factor = turns.order, turns.factor
    diagonal = moments.diagonal()[order]
    assert bool((diagonal.diff() <= 0).all())
    assert torch.equal(factor, factor.triu())
    damped = moments.double()[order][:, order]
    damped += gptq.DAMPING * moments.double().diagonal().mean() * torch.eye(len(order))
    unit = factor.double().T @ factor.double() @ damped
    torch.testing.assert_close(unit, torch.eye(len(order)).double(), rtol=0.0, atol=1e-4)


def test_experts_with_other_inputs_take_turns_and_compute_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in threads, a few rows of one and a few of another."""
    factored: list[torch.Tensor] = []

    def count(matrix: torch.Tensor) -> torch.Tensor:
        factored.append(matrix)
        return triangles.inverse_factor(matrix)

    monkeypatch.setattr(definite, "inverse_factor", count)
    moments = [second_moments(inputs(24, seed=seed)) for seed in (1, 2)]
    roundings = [MadeUpFor.of(each) for each in moments]
    levels, blocks, delta = levels_of("uniform", 3), Blocks.of(24, 0), gauss((6, 24))
    lines = Lines(torch.full((6, 1), 0.01), None)
    found = [
        [rounding.codes(delta[rows], lines.of_rows(rows), levels, blocks) for rounding in roundings]
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert len(factored) == 2
    for rounding, codes in zip(roundings, zip(*found, strict=True), strict=True):
        assert torch.equal(rounding.codes(delta, lines, levels, blocks), torch.cat(codes))


@pytest.mark.parametrize(
    "codec",
    [
        Quantized(bits=3),
        LowRank(rank=2),
        Entropy(knob=0.01, steps="sensitive", rounding="compensated"),
    ],
    ids=lambda each: each.name,
)
@pytest.mark.parametrize("width", [12, triangles.COLUMNS + 9])
def test_what_cannot_be_second_moments_is_said_in_a_sentence(codec: DeltaCodec, width: int) -> None:
    """Symmetric and not negative on the diagonal, but two inputs never hang together so much."""
    moments = torch.eye(width)
    moments[0, 1] = moments[1, 0] = 2.0
    known = replace(
        context(torch.float32, 5),
        moments=moments,
        curvature=Curvature(torch.ones(width), torch.full((9,), width / 9)),
    )
    with pytest.raises(CodecError, match="second moments"):
        codec.encode(gauss((9, width)), known)


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
