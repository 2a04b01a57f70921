"""Rounding to multiples for which later columns make up: against torch, against brute force, and
against rounding to the nearest."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.codec_support import context, gauss, inputs, second_moments

from ders_core.codecs import Codec, EncodeContext, Entropy, make_codec
from ders_core.codecs.coding import level_stream
from ders_core.codecs.curvature import DAMPING, Curvature, correlation_of
from ders_core.codecs.fitting.compensated import left_of, succession_of
from ders_core.codecs.fitting.rounding import EXACT_CODES, FARTHEST
from ders_core.codecs.fitting.sensitive_steps import steps_by_curvature
from ders_core.codecs.testing.inputs import curvature
from ders_core.compute import kernels
from ders_core.compute.triangles import factorize
from ders_core.errors import CodecError
from ders_core.pipeline.believed import Inputs

OUT, WIDTH = 67, 150


def related_inputs(width: int) -> torch.Tensor:
    """E[x xᵀ] of inputs that hang together, float32, symmetric."""
    mixed = inputs(width) @ gauss((width, width), 4, width**-0.5) + 0.1 * gauss((1, width), 9, 1.0)
    return Inputs.of(second_moments(mixed), len(mixed)).believed


def known_of(moments: torch.Tensor | None, out: int = OUT) -> EncodeContext:
    width = WIDTH if moments is None else len(moments)
    rows = torch.exp(gauss((out,), 5, 1.0))
    columns = torch.exp(gauss((width,), 6, 1.0))
    if moments is not None:
        columns = moments.diagonal().clone()
    costs = Curvature(columns * float(rows.sum() / columns.sum()), rows)
    return replace(context(torch.float32, 5), moments=moments, curvature=costs)


def by_knob(knob: float, rounding: str = "compensated") -> Codec:
    return make_codec(
        {"codec": "entropy", "steps": "sensitive", "knob": knob, "rounding": rounding}
    )


def pack(codec: Codec, delta: torch.Tensor, known: EncodeContext) -> tuple[int, torch.Tensor]:
    """(bytes, what comes back)."""
    assert isinstance(codec, Entropy)
    parts = codec.encode(delta, known)
    return parts["stream"].numel(), codec.decode(parts, (delta.shape[0], delta.shape[1]), known)


@pytest.mark.parametrize("knob", [1e-3, 1e-6])
def test_loops_round_as_torch_does(monkeypatch: pytest.MonkeyPatch, knob: float) -> None:
    """More rows than at once, more columns than a block; values that share codes, and zeros."""
    delta, known = gauss((OUT, WIDTH), scale=1.0), known_of(related_inputs(WIDTH))
    assert known.curvature is not None
    assert known.moments is not None
    delta[3, :48] = 0
    steps = steps_by_curvature(known.curvature)
    rounding = succession_of(known.moments).rounding(known.curvature, steps)
    values = steps.divided(delta).view(-1)
    codes = rounding.coded(values, knob, 0)
    assert bool((codes < FARTHEST - EXACT_CODES).any()) is (knob < 1e-5)
    monkeypatch.setattr(kernels, "takes", lambda *tensors: False)
    assert np.array_equal(codes, rounding.coded(values, knob, 0))


def test_what_an_error_costs() -> None:
    """½ Σ rows_i/Σ · E_i M E_iᵀ with loops over all pairs of columns; independent errors cost on
    average what they cost without moments."""
    moments, error = related_inputs(9), gauss((4, 9), 1, 1e-3)
    costs = curvature((4, 9))
    powers = moments.double().diagonal()
    wanted = 0.0
    for row in range(4):
        for one in range(9):
            for other in range(9):
                related = float(moments[one, other]) / math.sqrt(powers[one] * powers[other])
                related /= 1 if one == other else 1 + DAMPING
                weight = math.sqrt(float(costs.columns[one]) * float(costs.columns[other]))
                product = float(error[row, one]) * float(error[row, other])
                wanted += float(costs.rows[row]) * weight * related * product / 2
    assert float(costs.cost(error, moments)) == pytest.approx(wanted / costs.total, rel=1e-5)
    assert costs.cost(error, moments.diagonal()) == costs.cost(error)
    signs = [gauss((4, 9), seed, 1.0).sign() * error for seed in range(2000)]
    mean = sum(float(costs.cost(each, moments)) for each in signs) / len(signs)
    assert mean == pytest.approx(float(costs.cost(error)), rel=0.05)


def test_inputs_that_never_occur() -> None:
    """They hang together with nothing."""
    moments = related_inputs(12)
    moments[3] = 0
    moments[:, 3] = 0
    correlation = correlation_of(moments)
    assert bool(torch.isfinite(correlation).all())
    assert torch.equal(correlation[3], torch.eye(12)[3])
    known = known_of(moments)
    _, back = pack(by_knob(1e-3), gauss((OUT, 12)), known)
    assert bool(torch.isfinite(back).all())


def test_what_is_left_is_what_least_squares_leaves() -> None:
    """Of an error in one column alone, once all later ones have made up for it as well as they can:
    brute force with the damped correlation."""
    moments = related_inputs(20)
    succession = succession_of(moments)
    ordered = correlation_of(moments).double()[succession.order][:, succession.order]
    left = succession.factor.diagonal().pow(-2)
    for place in range(20):
        later = ordered[place + 1 :, place + 1 :]
        share = ordered[place, place + 1 :]
        least = ordered[place, place] - share @ torch.linalg.solve(later, share)
        assert float(left[place]) == pytest.approx(float(least), rel=1e-9)


def test_what_is_left_needs_no_rounding() -> None:
    """Moments that cannot be such are refused, as where values are rounded."""
    moments = related_inputs(300)
    known = known_of(moments)
    assert known.curvature is not None
    left, found = succession_of(moments).left(known.curvature), left_of(known.curvature, moments)
    torch.testing.assert_close(found.columns, left.columns, rtol=1e-6, atol=0)
    assert torch.equal(found.rows, known.curvature.rows)
    assert float(found.columns.sum()) < 0.9 * float(known.curvature.columns.sum())
    wrong = torch.full((3, 3), 2.0).fill_diagonal_(1.0)
    with pytest.raises(CodecError, match="not positive definite"):
        left_of(Curvature(torch.ones(3), torch.ones(3)), wrong)


def test_what_is_left_is_computed_once_for_all_with_the_same_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factorized = list[int]()

    def spy(matrix: torch.Tensor) -> torch.Tensor:
        factorized.append(len(matrix))
        return factorize(matrix)

    monkeypatch.setattr("ders_core.codecs.fitting.compensated.factorize", spy)
    moments, other = related_inputs(20), related_inputs(30)
    one, two = (left_of(Curvature(c * torch.ones(20), torch.ones(4)), moments) for c in (1.0, 2.0))
    assert torch.equal(2 * one.columns, two.columns)
    assert factorized == [20]
    left_of(Curvature(torch.ones(30), torch.ones(4)), other)
    assert factorized == [20, 30]


def test_fewer_bytes_at_the_same_cost() -> None:
    """With many bits, as many fewer as columns' curvature falls on average."""
    moments, delta = related_inputs(WIDTH), gauss((400, WIDTH), scale=0.02)
    known = known_of(moments, 400)
    assert known.curvature is not None
    nearest, compensated = (
        pack(by_knob(3e-4, each), delta, known) for each in ("nearest", "compensated")
    )
    costs = [known.curvature.cost(each[1] - delta, moments) for each in (nearest, compensated)]
    assert costs[1] < 1.2 * costs[0]
    saved = 8 * (nearest[0] - compensated[0]) / delta.numel()
    left = succession_of(moments).factor.diagonal().pow(-2)
    assert saved == pytest.approx(-0.5 * float(left.log2().mean()), abs=0.15)
    assert saved > 0.5


def test_where_it_does_not_pay_values_are_rounded_to_the_nearest() -> None:
    """With few bits for an entry, of inputs that hang together loosely; and never is the merit
    worse."""
    loud = torch.linspace(0.05, 2.0, WIDTH)
    seen = gauss((2000, WIDTH)) @ (gauss((WIDTH, WIDTH), 7) * loud)
    moments = Inputs.of(second_moments(seen), len(seen)).believed
    delta, known, chosen = gauss((OUT, WIDTH), scale=0.02), known_of(moments), set()
    assert known.curvature is not None
    for knob in (1e-3, 1e-2):
        merits = []
        for rounding in ("nearest", "compensated"):
            taken, back = pack(by_knob(knob, rounding), delta, known)
            cost = float(known.curvature.cost(back - delta, moments))
            merits.append(cost + knob**2 / 12 * math.log(2) * 8 * taken)
        assert merits[1] <= merits[0] * 1.001
        chosen.add(merits[1] < merits[0])
    assert chosen == {True, False}


@pytest.mark.parametrize("kind", ["none", "diagonal"])
def test_without_full_moments_it_is_the_nearest(kind: str) -> None:
    moments = related_inputs(WIDTH).diagonal() if kind == "diagonal" else None
    known, delta = known_of(None), gauss((OUT, WIDTH))
    known = replace(known, moments=moments)
    found, wanted = (pack(by_knob(1e-2, each), delta, known) for each in ("compensated", "nearest"))
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])


def test_bits_take_the_place_of_a_knob() -> None:
    codec = by_knob(0.1)
    assert codec.dump()["rounding"] == "compensated"
    fields = {"codec": codec.name, **codec.fields_beside_strength(), "bits": 2}
    assert make_codec(fields).dump() == {"codec": "entropy", "bits": 2} | {
        "rounding": "compensated",
        "steps": "sensitive",
    }


def test_streams_are_read_as_all_others() -> None:
    known = known_of(related_inputs(WIDTH))
    codec = by_knob(1e-2)
    assert isinstance(codec, Entropy)
    parts = codec.encode(gauss((OUT, WIDTH)), known)
    assert level_stream.is_one(parts["stream"])


@pytest.mark.parametrize("knob", [0.3, 0.03])
def test_a_gain_of_1_costs_no_byte(knob: float) -> None:
    """Levels are longer by what is missing of the delta where errors cost, in float64; with large
    steps much of it is, since most multiples are 0."""
    delta, known = gauss((OUT, WIDTH), scale=1.0), known_of(related_inputs(WIDTH))
    assert known.curvature is not None
    weights = torch.outer(known.curvature.rows.double(), known.curvature.columns.double())
    fields = {"codec": "entropy", "steps": "sensitive", "knob": knob, "rounding": "compensated"}

    def gain_of(codec: Codec) -> tuple[int, float]:
        nbytes, decoded = pack(codec, delta, known)
        exact = delta.double()
        shared, whole = (float((weights * each * exact).sum()) for each in (decoded, exact))
        return nbytes, shared / whole

    shrunken, full = (
        gain_of(make_codec({**fields, **more})) for more in ({}, {"gain": "unbiased"})
    )
    assert shrunken[0] == full[0]
    assert full[1] == pytest.approx(1.0, abs=1e-6)
    assert abs(shrunken[1] - 1) > 1e-3
