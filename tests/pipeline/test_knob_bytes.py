"""Levels that are counted tell what the coder takes, knob by knob."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gradient_calibrations import of_everything

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CodecError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.budget import FIRST, with_knob
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.knob_bytes import (
    COARSEST,
    FINER,
    FINEST,
    PER_OCTAVE,
    KnobBytes,
    SampledLevels,
)
from ders_core.pipeline.plan import Plan, resolve
from ders_core.pipeline.sampling import Extent
from ders_core.recipe import Recipe


@pytest.fixture(scope="module")
def source(mixtral_dir: Path) -> Checkpoint:
    return open_checkpoint(mixtral_dir)


@pytest.fixture(scope="module")
def calibration(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("levels") / "c.safetensors"
    of_everything(source, path)
    return path


def plan_of(
    source: Checkpoint,
    calibration: Path,
    knob: float,
    *,
    compensated: bool = False,
    **fields: Any,
) -> Plan:
    data = {"version": 2, "name": "b", "calibration": calibration, "budget": {"knob": knob}}
    recipe = Recipe.model_validate(data | fields)
    return resolve(with_knob(recipe, knob, (), compensated=compensated), source)


@pytest.fixture
def taken(source: Checkpoint, calibration: Path) -> Callable[..., int]:
    """Bytes by a knob, told by the coder from all rows."""

    def bytes_at(at: float, **fields: Any) -> int:
        return forecast(plan_of(source, calibration, 2**at, **fields), source).bytes_after

    return bytes_at


def levels_of(
    source: Checkpoint, calibration: Path, progress: Progress = quiet, **fields: Any
) -> KnobBytes:
    plans = [plan_of(source, calibration, knob, **fields) for knob in (FIRST, 2 * FIRST)]
    return KnobBytes(plans[0], plans[1], math.log2(FIRST), source, Meter(6, progress))


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


@pytest.mark.parametrize(("base", "near"), [("mean", 0.03), ("none", 0.1)])
def test_errors_that_are_made_up_for_spare_bytes(
    source: Checkpoint, tmp_path: Path, base: str, near: float
) -> None:
    """Of bases and other matrices, or of experts; those of deltas by chance are not."""
    related = tmp_path / "related.safetensors"
    fields: dict[str, Any] = {"base": base, "compensated": True}
    of_everything(source, related, related=0.9)
    levels = levels_of(source, related, **fields)
    for at in (-13.1, -9.6):
        most = forecast(plan_of(source, related, 2**at, **fields), source).bytes_after
        assert levels.within(most) == pytest.approx(at, abs=near)


@pytest.mark.parametrize(("base", "times"), [("mean", 0), ("none", 1)])
def test_inputs_of_single_experts_are_read_where_they_make_up_for_errors(
    source: Checkpoint,
    calibration: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    times: int,
) -> None:
    read, expert_moments = list[tuple[int, str]](), Calibration.expert_moments

    def spy(known: Calibration, layer: int, projection: str) -> Any:
        read.append((layer, projection))
        return expert_moments(known, layer, projection)

    monkeypatch.setattr(Calibration, "expert_moments", spy)
    levels_of(source, calibration, base=base, compensated=True)
    assert len(read) == times * len(source.groups())


def test_some_rows_and_experts_tell_of_all(
    qwen2_moe_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of 16 rows each, of 40 or 64 in four of six experts."""
    monkeypatch.setattr("ders_core.pipeline.knob_bytes.USUAL", Extent(1 << 10, 1 << 10, 4))
    source = open_checkpoint(qwen2_moe_dir)
    of_everything(source, tmp_path / "c.safetensors")
    levels = levels_of(source, tmp_path / "c.safetensors")
    for at in (-13.1, -11.1, -9.6):  # without what rows do not show of others, 0.13 below the first
        most = forecast(plan_of(source, tmp_path / "c.safetensors", 2**at), source).bytes_after
        assert levels.within(most) == pytest.approx(at, abs=0.1)


def test_experts_that_no_sample_tells_are_left_out(
    source: Checkpoint, calibration: Path, taken: Callable[..., int]
) -> None:
    """As a forecast leaves them out: what is told of them is the same with any knob."""
    rank = {"layers": 0, "experts": 0, "codec": "lowrank", "rank": 8}
    of_bases = {"projections": "down", "codec": "lowrank", "rank": 8}
    fields: dict[str, Any] = {"rules": [rank], "base_codec": [of_bases]}
    levels = levels_of(source, calibration, **fields)
    most = taken(-9.6, **fields)
    assert taken(levels.within(most), **fields) == pytest.approx(most, rel=0.005)


def test_inputs_are_not_held(
    source: Checkpoint, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their second moments, which make up for errors, would take gigabytes of a large model."""
    moments = list[Any]()

    def counted(levels: SampledLevels, _factor: float) -> float:
        assert levels.context.curvature is not None
        moments.append(levels.context.moments)
        return levels.entries

    monkeypatch.setattr(SampledLevels, "nbytes", counted)
    levels_of(source, calibration).within(10**6)
    assert set(moments) == {None}


def test_it_says_what_it_does_and_can_be_stopped(source: Checkpoint, calibration: Path) -> None:
    said = list[str]()

    def progress(done: int, total: int, message: str) -> None:
        assert (done, total) == (0, 6)
        said.append(message)
        if "counting" in message:
            raise InterruptedError

    levels = levels_of(source, calibration, progress)
    assert len(said) == len(source.groups()) + 10  # attention of two layers, embeddings, output
    assert f"reading layer 1, {source.groups()[-1].projection}" in said
    with pytest.raises(InterruptedError):
        levels.within(10**6)
    assert "knob" in said[-1]


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


def test_what_none_takes(source: Checkpoint, calibration: Path, taken: Callable[..., int]) -> None:
    """The coarsest of all knobs is told where none takes as little; the finest where all do, if it
    is not too fine."""
    levels = levels_of(source, calibration)
    assert levels.within(1) == COARSEST
    finest = levels.within(10**12)
    assert levels.finest - finest == pytest.approx(FINER, abs=1 / PER_OCTAVE)
    with pytest.raises(CodecError):
        taken(finest)
    plan = plan_of(source, calibration, FIRST)
    same = KnobBytes(plan, plan, math.log2(FIRST), source, Meter())  # nothing follows the knob
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
