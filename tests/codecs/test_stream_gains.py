"""Gains of rows and columns in a stream of `entropy`: against products in float64, and what a
stream with them may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import context, gauss

from ders_core.codecs import Entropy
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.gains import Gains, gain_bytes
from ders_core.codecs.fitting.tunable_streams import COLUMNS, ROWS, tunable_stream
from ders_core.codecs.held_levels import Form
from ders_core.codecs.testing.inputs import curvature
from ders_core.codecs.testing.tuning import check_tuned
from ders_core.codecs.tunable import Tunable
from ders_core.compute import kernels
from ders_core.errors import CodecError

SHAPE = (37, 52)


def packed(steps: str = "sensitive", shape: tuple[int, int] = SHAPE) -> tuple[Entropy, Any, Any]:
    """(codec, parts, context): by a knob, which leaves room for gains; without steps, by bits."""
    known = context(torch.float32, 5)
    if steps == "even":
        codec = Entropy(bits=3.0)
    else:
        codec = Entropy(knob=0.02, steps="sensitive", rounding="unbiased")
        known = type(known)(known.dtype, known.seed, curvature=curvature(shape))
    return codec, codec.encode(gauss(shape, 1, 1.0), known), known


def tuned(tunable: Tunable, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return tunable.store({**tunable.values, ROWS: rows, COLUMNS: columns})["stream"]


def drawn(count: int, seed: int, spread: float) -> torch.Tensor:
    return 1 + gauss((count,), seed, spread)


@settings(max_examples=15, deadline=None)
@given(
    out=st.integers(1, 20),
    width=st.integers(1, 20),
    spread=st.sampled_from([0.0, 1e-4, 0.02, 0.3]),
    seed=st.integers(0, 1000),
)
def test_what_is_stored_is_near(out: int, width: int, spread: float, seed: int) -> None:
    """Within half a unit, of which the farthest value is seven; and stored again the same."""
    rows, columns = (drawn(count, seed + 1, spread).numpy() for count in (out, width))
    stream = packed(shape=(out, width))[1]["stream"]
    levels = torch.from_numpy(level_stream.read(stream, (out, width)).levels.copy())
    longer = level_stream.with_values(stream, (out, width), levels, Gains(rows, columns))
    assert len(longer) == len(stream) + gain_bytes((out, width))
    again = level_stream.read(longer, (out, width)).gains
    assert again is not None
    for wanted, found in ((rows, again.rows), (columns, again.columns)):
        farthest = np.abs(wanted.astype(np.float64) - 1).max()
        assert np.abs(wanted.astype(np.float64) - found).max() <= farthest / 14 * 1.001 + 1e-7
    kept = level_stream.with_values(longer, (out, width), levels, None)
    assert torch.equal(kept, longer)


@pytest.mark.parametrize("steps", ["even", "sensitive"])
@pytest.mark.parametrize("compiled", [True, False])
def test_entries_are_multiplied(
    steps: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without steps, in loops and in torch, as a whole, in part and onto a base; codes
    stay."""
    _, parts, _ = packed(steps)
    before = level_stream.read(parts["stream"], SHAPE)
    tunable = tunable_stream(parts["stream"], SHAPE, has_room=True)
    stream = tuned(tunable, drawn(SHAPE[0], 2, 0.05), drawn(SHAPE[1], 3, 0.05))
    if not compiled:
        monkeypatch.setattr(kernels, "takes", lambda *tensors: False)
        monkeypatch.setattr(kernels, "takes_stored", lambda *tensors: False)
    after = level_stream.read(stream, SHAPE)
    assert torch.equal(before.numbers(), after.numbers())
    gains = after.gains
    assert gains is not None
    assert np.abs(gains.rows - 1).max() > 0.03
    wanted = before.matrix().double() * torch.from_numpy(gains.rows).double()[:, None]
    wanted *= torch.from_numpy(gains.columns).double()
    torch.testing.assert_close(after.matrix().double(), wanted, rtol=1e-6, atol=0)
    assert torch.equal(after.matrix(slice(5, 9)), after.matrix()[5:9])
    base = gauss(SHAPE, 4, 1.0)
    assert torch.equal(after.onto(base), base + after.matrix())


def check_gradients(tunable: Tunable) -> None:
    """Of each kind of value alone, in which the delta is linear."""
    weights = gauss(SHAPE, 4, 1.0)
    values = {name: value.clone().requires_grad_() for name, value in tunable.values.items()}
    total = (tunable.decode(values) * weights).sum()
    for name, gradient in zip(values, torch.autograd.grad(total, [*values.values()]), strict=True):
        direction = gauss(tuple(values[name].shape), 7, 1.0)
        ends = [
            tunable.decode({**tunable.values, name: tunable.values[name] + step * direction})
            for step in (0.5, -0.5)
        ]
        difference = float(((ends[0] - ends[1]).double() * weights).sum())
        size = float(((ends[0] - ends[1]).double() * weights).abs().sum())
        slope = float((gradient.double() * direction).sum())
        assert slope == pytest.approx(difference, abs=1e-5 * size), name


def test_they_are_tuned_as_all_else() -> None:
    """What is decoded in training is what the codec decodes, and gradients are those of
    differences; also of a stream that has gains."""
    codec, parts, known = packed()
    for _ in range(2):
        tunable = codec.tunable(parts, SHAPE, known)
        assert set(tunable.kinds.values()) == {"levels", "gains"}
        assert torch.equal(tunable.store(tunable.values)["stream"], parts["stream"])
        check_tuned(codec, parts, tunable, tunable.values, SHAPE, known)
        check_gradients(tunable)
        rows, columns = drawn(SHAPE[0], 5, 0.02), drawn(SHAPE[1], 6, 0.02)
        parts = {"stream": tuned(tunable, rows, columns)}
    gains = level_stream.read(parts["stream"], SHAPE).gains
    assert gains is not None
    assert np.abs(gains.rows - rows.numpy()).max() < 0.01


def test_there_are_none_by_bits() -> None:
    """Also where the stream is far shorter than it may be: of the experts of a group none is."""
    _, parts, known = packed("even")
    assert set(Entropy(bits=8.0).tunable(parts, SHAPE, known).kinds) == {"levels"}


def test_the_most_bytes_are_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that has no room for gains has none to train."""
    codec, parts, known = packed()
    most = len(parts["stream"]) + gain_bytes(SHAPE) - 1
    monkeypatch.setattr(Entropy, "_limit", lambda codec, shape: most)
    assert set(codec.tunable(parts, SHAPE, known).kinds) == {"levels"}


@pytest.mark.parametrize("unit", [float("nan"), -0.1, 1.5, float("inf")])
def test_units_that_no_stream_has(unit: float) -> None:
    _, parts, _ = packed()
    tunable = tunable_stream(parts["stream"], SHAPE, has_room=True)
    stream = tuned(tunable, drawn(SHAPE[0], 2, 0.05), drawn(SHAPE[1], 3, 0.05))
    gains = level_stream.read(stream, SHAPE).gains
    assert gains is not None
    raw = np.float32(np.abs(gains.rows - 1).max() / 7).tobytes()
    begin = stream.numpy().tobytes().index(raw[1:]) - 1
    damaged = stream.clone()
    damaged[begin : begin + 4] = torch.from_numpy(np.array([unit], "<f4").view(np.uint8))
    with pytest.raises(CodecError, match="damaged"):
        level_stream.read(damaged, SHAPE)
    with pytest.raises(CodecError):
        level_stream.read(stream[: begin + 9], SHAPE)


@pytest.mark.parametrize("steps", ["sensitive", "even"])
def test_a_model_in_memory_holds_gains(steps: str) -> None:
    """Where levels are held in place of the stream, with steps of their own or none."""
    codec, parts, known = packed(steps)
    tunable = tunable_stream(parts["stream"], SHAPE, has_room=True)
    rows, columns = drawn(SHAPE[0], 3, 0.05), drawn(SHAPE[1], 4, 0.05)
    parts = {"stream": tuned(tunable, rows, columns)}
    held = codec.held_parts(parts, SHAPE, known)
    assert Form.read(held).has_factors
    assert level_stream.about(parts["stream"], SHAPE).has_factors
    form = codec.held_form(SHAPE)
    delta = codec.decode(parts, SHAPE, known)
    assert torch.equal(form.decode(held, SHAPE, known), delta)
    x = gauss((3, SHAPE[1]), 6, 1.0)
    torch.testing.assert_close(form.product(held, x, SHAPE, known), x @ delta.T)
