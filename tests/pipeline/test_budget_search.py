"""How the knob is found that meets a budget of a share: in few steps, whatever levels tell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.budgets import asking
from support.gradient_calibrations import of_everything

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Entropy
from ders_core.errors import CodecError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.budget import settled
from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.knob_bytes import SampledLevels
from ders_core.pipeline.plan import Plan
from ders_core.pipeline.sampling import Extent
from ders_core.recipe.budget import Budget


@pytest.fixture(scope="module")
def calibration(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "c.safetensors"
    of_everything(open_checkpoint(mixtral_dir), path)
    return path


def made_up(
    monkeypatch: pytest.MonkeyPatch,
    source: Checkpoint,
    saved: float,
    finest: float,
    fixed: float = 0.0,
) -> list[float]:
    """Levels tell a bit an entry for each octave, but of no knob below 2^-8.1; the coder `saved`
    times as much, of none below `finest`, and `fixed` beside it, a share of the original. Gets the
    shares that are judged."""
    judged = list[float]()

    def bits(knob: float) -> float:
        return math.log2(1 + 2**-4 / knob)

    def counted(levels: SampledLevels, factor: float) -> float:
        assert levels.codec.knob is not None
        knob = factor * levels.codec.knob
        if knob < 2**-8.1:
            raise CodecError("too fine")
        return levels.entries * bits(knob) / 8

    def told(plan: Plan, checkpoint: Any, *, extent: Extent, with_lossless: bool) -> Forecast:
        (rule,) = plan.recipe.base_codec
        assert isinstance(rule.codec, Entropy)
        assert rule.codec.rounding == "compensated"
        assert rule.codec.knob is not None
        if rule.codec.knob < finest:
            raise CodecError("too fine")
        taken = (fixed + bits(rule.codec.knob) / 16 * saved) * source.bytes_total
        judged.append(taken / source.bytes_total)
        return Forecast((), round(taken), None)

    monkeypatch.setattr("ders_core.pipeline.knob_bytes.SampledLevels.nbytes", counted)
    monkeypatch.setattr("ders_core.pipeline.budget.forecast", told)
    return judged


@pytest.mark.parametrize(
    ("saved", "fixed", "share", "most"),
    [(0.87, 0.0, 0.26, 3), (1.1, 0.0, 0.26, 3), (0.3, 0.0, 0.04, 6), (0.3, 0.2, 0.23, 6)],
)
def test_a_share_is_met_whatever_making_up_for_errors_saves(
    mixtral_dir: Path,
    calibration: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: float,
    fixed: float,
    share: float,
    most: int,
) -> None:
    """Also where levels cannot tell of steps as fine, and where what they tell is far too steep."""
    source = open_checkpoint(mixtral_dir)
    judged = made_up(monkeypatch, source, saved, 0.0, fixed)
    found = settled(asking(calibration, {"share": share}), Budget(share=share), source)
    assert found.told is not None
    assert 0.985 * share <= found.told.bytes_after / source.bytes_total <= share
    assert len(judged) <= most


@pytest.mark.parametrize("finest", [2**-7.5, 2**-8.9])
def test_a_share_that_would_take_too_fine_steps_gets_about_the_finest(
    mixtral_dir: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch, finest: float
) -> None:
    source = open_checkpoint(mixtral_dir)
    made_up(monkeypatch, source, 1.0, finest)
    found = settled(asking(calibration, {"share": 0.9}), Budget(share=0.9), source)
    assert 1 <= found.knob / finest < 2**0.25


def test_a_share_is_met_beside_experts_that_no_sample_tells(
    mixtral_dir: Path, calibration: Path
) -> None:
    """What is foretold of such groups is the same with any knob, so the first knobs are near."""
    judged = list[str]()

    def progress(_done: int, _total: int, message: str) -> None:
        if "trying" in message:
            judged.append(message)

    source = open_checkpoint(mixtral_dir)
    rank = {"layers": 0, "experts": [0], "codec": "lowrank", "rank": 8}
    recipe = asking(calibration, {"share": 0.72}, rules=[rank])
    found = settled(recipe, Budget(share=0.72), source, progress=progress)
    assert found.told is not None
    assert 0.98 * 0.72 <= found.told.bytes_after / source.bytes_total <= 0.72
    assert len(judged) <= 2
