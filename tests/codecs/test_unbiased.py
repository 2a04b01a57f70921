"""Unbiased rounding and steps by sensitivity, against their definitions in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import context, double, gauss

from ders_core.codecs import Entropy
from ders_core.codecs.codec import EncodeContext
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.steps import LARGEST, MOST_CLASSES, PER_OCTAVE, SMALLEST, Steps
from ders_core.codecs.coding.stream import Reader, Writer
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.rounding import EXACT_CODES, FARTHEST, Unbiased, multiples
from ders_core.codecs.fitting.sensitive_steps import steps_by_curvature
from ders_core.codecs.testing.inputs import curvature
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype


def with_curvature(known: Curvature, seed: int = 5) -> EncodeContext:
    return EncodeContext(torch.float32, seed, None, known)


def entries_of(known: Curvature) -> np.ndarray:
    """C `[out, in]` in float64, by its definition."""
    rows, columns = double(known.rows), double(known.columns)
    entries: np.ndarray = np.outer(rows, columns) / columns.sum()
    return entries


def decoded(codec: Entropy, delta: torch.Tensor, known: EncodeContext) -> tuple[torch.Tensor, int]:
    """(Δ̂, bytes)."""
    parts = codec.encode(delta, known)
    plain = EncodeContext(known.dtype, known.seed)
    return codec.decode(parts, (delta.shape[0], delta.shape[1]), plain), parts["stream"].numel()


# rounding


def test_the_mean_of_what_a_value_becomes_is_the_value() -> None:
    """Also far out, where multiples share codes. Chebyshev: 6 standard deviations."""
    values = torch.tensor(
        [0.0, 0.3, -0.3, 1.0, -7.9, 123.456, EXACT_CODES * 5.3, -EXACT_CODES * 99]
    )
    draws, step = 4000, 0.7
    levels = torch.stack([multiples(Unbiased(s).codes(values, step, 0)) for s in range(draws)])
    got = double(levels) * step
    spread = got.std(0) / math.sqrt(draws)
    assert (
        np.abs(got.mean(0) - double(values)) <= 6 * spread + 1e-5 * np.abs(double(values))
    ).all()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60),
    step=st.floats(0.125, 64, width=32),
    seed=st.integers(0, 2**62 - 1),
)
def test_a_value_becomes_one_of_the_multiples_around_it(
    values: list[float], step: float, seed: int
) -> None:
    entries = torch.tensor(values)
    codes = Unbiased(seed).codes(entries, step, 0)
    ratio, exact = double(entries) / step, double(codes)
    near = np.abs(ratio) < EXACT_CODES - 1
    assert (np.abs(exact - ratio)[near] < 1 + 1e-3).all()
    assert int(codes.abs().max()) <= FARTHEST


def test_chance_depends_on_the_place_alone() -> None:
    values = gauss((3000,), scale=1.0)
    whole = Unbiased(9).codes(values, 0.8, 0)
    pieces = [Unbiased(9).codes(values[i : i + 700], 0.8, i) for i in range(0, 3000, 700)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(Unbiased(8).codes(values, 0.8, 0), whole)


@pytest.mark.parametrize("bits", [0.05, 0.2, 0.6, 1.3, 4])
def test_bytes_are_what_was_allowed_and_deltas_do_not_shrink(bits: float) -> None:
    delta = gauss((256, 1024))
    exact = double(delta)
    restored, nbytes = decoded(Entropy(bits=bits, rounding="unbiased"), delta, context())
    allowed = bits * delta.numel() / 8
    assert 0.98 * allowed <= nbytes <= allowed
    error = double(restored) - exact
    energy = (exact**2).sum()
    chance = math.sqrt((error**2 * exact**2).sum()) / energy
    assert abs((double(restored) * exact).sum() / energy - 1) < 6 * chance


def test_a_few_values_that_may_take_few_bytes_are_not_all_zeros() -> None:
    """Zeros alone have less error than unbiased codes of few bits, and are not what was asked."""
    for seed in range(40):
        delta = gauss((40, 256), seed)
        codec = Entropy(bits=0.4, rounding="unbiased")
        restored, nbytes = decoded(codec, delta, context(seed=seed))
        assert nbytes >= 0.9 * 0.4 * delta.numel() / 8
        assert 1 < float((restored - delta).norm() / delta.norm()) < 5


# steps


def test_steps_are_those_of_reverse_water_filling() -> None:
    """With a knob: no error beyond its own step, knob · C^(−½) within the fineness of factors."""
    known, delta = curvature((40, 70)), gauss((40, 70))
    knob = 1e-5
    restored, _ = decoded(
        Entropy(knob=knob, rounding="unbiased", steps="sensitive"), delta, with_curvature(known)
    )
    sensitivity = entries_of(known)
    fine = 2 ** (1 / PER_OCTAVE)  # half of it in a row's factor, half in a column's
    usual = (double(known.rows)[:, None] > 0) & (double(known.columns) > 0)
    steps = knob / np.sqrt(np.where(usual, sensitivity, np.inf))
    error = np.abs(double(restored) - double(delta))
    assert (error[usual] <= fine * steps[usual] * (1 + 1e-4)).all()
    assert (error[usual] > 0.3 * steps[usual]).mean() > 0.2  # and not much finer ones


@pytest.mark.parametrize(("bits", "share"), [(0.1, 0.85), (0.5, 0.6), (2, 0.6)])
def test_sensitive_steps_cost_less_at_the_same_bytes(bits: float, share: float) -> None:
    """With few bytes the factors take a part of them."""
    known, delta = curvature((256, 512)), gauss((256, 512))
    sensitivity, costs = entries_of(known), {}
    for steps in ("even", "sensitive"):
        fields: dict[str, Any] = {"bits": bits, "rounding": "unbiased", "steps": steps}
        restored, nbytes = decoded(Entropy(**fields), delta, with_curvature(known))
        assert nbytes <= bits * delta.numel() / 8
        error = double(restored) - double(delta)
        costs[steps] = (sensitivity * error**2).sum() / 2
        assert float(known.cost(restored - delta)) == pytest.approx(costs[steps], rel=1e-6)
    assert costs["sensitive"] < share * costs["even"]


def test_inputs_alone_give_steps_of_columns() -> None:
    power = curvature((4, 512)).columns + 1e-6
    delta = gauss((128, 512))
    fields: dict[str, Any] = {"bits": 1, "rounding": "unbiased"}
    even, _ = decoded(Entropy(**fields), delta, context())
    known = EncodeContext(torch.float32, 5, power)
    sensitive, _ = decoded(Entropy(**fields, steps="sensitive"), delta, known)
    lost = [float(((each - delta).square() * power).sum()) for each in (even, sensitive)]
    assert lost[1] < 0.6 * lost[0]


def test_a_knob_needs_gradients() -> None:
    codec = Entropy(knob=1e-3, rounding="unbiased", steps="sensitive")
    with pytest.raises(CodecError, match="gradients"):
        codec.encode(gauss((4, 4)), EncodeContext(torch.float32, 5, torch.ones(4)))
    assert codec.needs_of_calibration == "gradients"


def test_a_knob_that_is_too_small_is_refused() -> None:
    codec = Entropy(knob=1e-12, rounding="unbiased", steps="sensitive")
    with pytest.raises(CodecError, match="larger"):
        codec.encode(gauss((64, 64), scale=1.0), with_curvature(curvature((64, 64))))


def test_a_matrix_too_small_for_factors_has_even_steps() -> None:
    codec = Entropy(bits=0.5, rounding="unbiased", steps="sensitive")
    delta = gauss((12, 40))
    restored, nbytes = decoded(codec, delta, with_curvature(curvature((12, 40))))
    assert nbytes <= codec.parts((12, 40), Dtype.F32)["stream"].shape[0]
    assert restored.shape == delta.shape


@settings(max_examples=80, deadline=None)
@given(data=st.data(), out=st.integers(0, 20), width=st.integers(0, 20))
def test_a_classed_stream_gives_back_levels_times_steps(
    data: st.DataObject, out: int, width: int
) -> None:
    exponents = st.integers(SMALLEST // 4, LARGEST // 4)
    rows = data.draw(st.lists(exponents, min_size=out, max_size=out))
    columns = data.draw(st.lists(exponents, min_size=width, max_size=width))
    steps = Steps(np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))
    assert steps.class_count <= MOST_CLASSES
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=out * width, max_size=out * width))
    used, numbers = np.unique(np.array(drawn, dtype=np.int64), return_inverse=True)
    levels = np.array([-2.5, 0.0, 1.0, 3.0], dtype=np.float32)[used]
    counts = np.zeros((steps.class_count, len(used)), dtype=np.int64)
    places = np.arange(out * width)
    of_places = steps.classes(places // max(width, 1), places % max(width, 1))
    np.add.at(counts, (of_places, numbers), 1)
    arrangement = Arrangement.of((out, width), steps)
    arranged = arrangement.arranged(numbers.reshape(out, width).astype(np.uint16))
    symbols = [arranged[part] for part in arrangement.classes]
    stream = level_stream.write(steps, levels, 0, symbols, counts).tensor()
    assert stream.numel() <= level_stream.stream_bytes(steps, counts, 1.01) + 8 * len(counts)
    got = double(level_stream.read(stream, (out, width)).matrix())
    scale = np.add.outer(np.array(rows, dtype=float), np.array(columns, dtype=float))
    wanted = levels.astype(float)[numbers].reshape(out, width) * 2 ** (scale / PER_OCTAVE)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@given(numbers=st.lists(st.integers(0, 2**32 - 1)))
def test_small_numbers_come_back(numbers: list[int]) -> None:
    writer = Writer()
    writer.put_small(numbers)
    assert Reader(writer.tensor()).small(len(numbers)) == numbers


def test_factors_undo_each_other() -> None:
    steps = steps_by_curvature(curvature((60, 90)))
    delta = gauss((60, 90))
    back = steps.multiply_(steps.divided(delta))
    np.testing.assert_allclose(double(back), double(delta), rtol=1e-6)
