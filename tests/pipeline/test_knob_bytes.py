"""Levels that are counted tell what the coder takes, knob by knob."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gradient_calibrations import with_gradients

from ders_core.checkpoint import Checkpoint
from ders_core.errors import CodecError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.budget import FIRST, with_knob
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.knob_bytes import COARSEST, FINER, FINEST, PER_OCTAVE, KnobBytes
from ders_core.pipeline.plan import Plan, resolve
from ders_core.recipe import Recipe


@pytest.fixture(scope="module")
def source(mixtral_dir: Path) -> Checkpoint:
    return open_checkpoint(mixtral_dir)


@pytest.fixture(scope="module")
def calibration(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [
        name
        for name, other in source.others.items()
        if other.kind in ("attention", "embedding", "head")
    ]
    path = tmp_path_factory.mktemp("levels") / "c.safetensors"
    with_gradients(source, path, cost=10.0, others=names)
    return path


def plan_of(source: Checkpoint, calibration: Path, knob: float, **fields: Any) -> Plan:
    data = {"version": 2, "name": "b", "calibration": calibration, "budget": {"knob": knob}}
    recipe = Recipe.model_validate(data | fields)
    return resolve(with_knob(recipe, knob, (), compensated=False), source)


@pytest.fixture
def taken(source: Checkpoint, calibration: Path) -> Callable[..., int]:
    """Bytes by a knob, told by the coder from all rows."""

    def bytes_at(at: float, **fields: Any) -> int:
        return forecast(plan_of(source, calibration, 2**at, **fields), source).bytes_after

    return bytes_at


def levels_of(source: Checkpoint, calibration: Path, **fields: Any) -> KnobBytes:
    plans = [plan_of(source, calibration, knob, **fields) for knob in (FIRST, 2 * FIRST)]
    return KnobBytes(plans[0], plans[1], math.log2(FIRST), source)


@pytest.mark.parametrize(
    "fields", [{}, {"base": "none"}, {"base": {"clusters": 2}}], ids=["mean", "none", "sets"]
)
def test_they_tell_what_the_coder_takes(
    source: Checkpoint, calibration: Path, taken: Callable[..., int], fields: dict[str, Any]
) -> None:
    """Here the sample is all there is, and no error is made up for."""
    levels = levels_of(source, calibration, **fields)
    for at, rel in ((-13.1, 0.005), (-9.6, 0.02), (-6.3, 0.05)):  # tables are told less well
        most = taken(at, **fields)
        assert taken(levels.within(most), **fields) == pytest.approx(most, rel=rel)


def test_what_one_knob_took_corrects_others(
    source: Checkpoint, calibration: Path, taken: Callable[..., int]
) -> None:
    """Where rules are exceptions, the plan has only bounds of what they take."""
    fixed = {"codec": "entropy", "knob": 1e-3, "steps": "sensitive"}
    fields: dict[str, Any] = {
        "rules": [{"layers": 0, "codec": "keep"}, {"layers": 1, "experts": 0, **fixed}],
        "base_codec": [{"projections": "down", "codec": "keep"}],
        "others": [{"kinds": "embedding", "codec": "keep"}],
    }
    levels = levels_of(source, calibration, **fields)
    assert taken(levels.within(taken(-9.6, **fields)), **fields) < 0.97 * taken(-9.6, **fields)
    levels.correct(-9.6, taken(-9.6, **fields))
    assert levels.within(taken(-9.6, **fields)) == pytest.approx(-9.6, abs=1e-9)
    for at in (-10.1, -9.1):
        most = taken(at, **fields)
        assert taken(levels.within(most), **fields) == pytest.approx(most, rel=0.01)


def test_what_none_takes(source: Checkpoint, calibration: Path) -> None:
    """The coarsest of all knobs is told where none takes as little; the finest where all do, if it
    is not too fine."""
    levels = levels_of(source, calibration)
    assert levels.within(1) == COARSEST
    assert levels.within(10**12) > FINEST
    plan = plan_of(source, calibration, FIRST)
    same = KnobBytes(plan, plan, math.log2(FIRST), source)  # nothing follows the knob
    assert same.within(10**12) == FINEST
    assert same.within(1) == COARSEST


def test_what_is_too_fine_takes_a_bit_more_for_each_octave(
    source: Checkpoint, calibration: Path, taken: Callable[..., int]
) -> None:
    """As far as making up for errors may bring it, and no farther."""
    levels, plan = levels_of(source, calibration), plan_of(source, calibration, FIRST)
    entries = sum(math.prod(other.shape) for other in plan.others)
    for entry in plan.entries:
        experts, out, width = entry.shape
        entries += (experts + 1) * out * width
    finest = levels.within(10**12)
    valid = finest + FINER
    with pytest.raises(CodecError):
        taken(valid - 1 / PER_OCTAVE)
    most = taken(valid)
    begin, end = levels.within(most + entries / 16), levels.within(most + entries / 8)
    assert begin == pytest.approx(valid - 0.5, abs=0.01)
    assert end == pytest.approx(valid - 1, abs=0.01)
