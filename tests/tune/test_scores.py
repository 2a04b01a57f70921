"""Scores of a tiny model: what they foretell is what is packed, and they are kept and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying
from support.scored_model import UNMEASURED, Scored

from ders_core.codecs import Codec, Keep, Lossless, Quantized
from ders_core.errors import CheckpointError
from ders_core.pipeline.compress import compress
from ders_core.tune import Bound, as_recipe, load_scores, save_scores, score, solve
from ders_core.tune.scores import FEW_TOKENS
from ders_core.tune.units import Unit


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_what_is_foretold_is_what_is_packed(scored: Scored, tmp_path: Path, share: float) -> None:
    """Bytes and predicted KL of the report, from all weights. Matrices are so small that what
    rounding by chance costs differs from one draw to the next."""
    allocation = solve(scored.scores, Bound("share", share))
    recipe = as_recipe(allocation, scored.checkpoint, scored.calibration)
    report = compress(scored.checkpoint.path, tmp_path / "out", recipe)
    assert allocation.nbytes <= share * scored.scores.bytes_total
    assert report.bytes_after == pytest.approx(allocation.nbytes, rel=0.03)
    assert report.predicted_kl == pytest.approx(allocation.predicted_kl, rel=0.2)


def test_the_recipe_has_the_codecs_of_the_allocation(scored: Scored) -> None:
    allocation = solve(scored.scores, Bound("share", 0.4))
    recipe = as_recipe(allocation, scored.checkpoint, scored.calibration)
    for each in allocation.chosen:
        unit, codec = each.scored.unit, each.candidate and each.candidate.codec
        if unit.group is None:
            assert recipe.codec_of_tensor(scored.checkpoint.others[unit.name]) == codec
        elif unit.part == "base":
            assert recipe.codec_of_base(*unit.group) == (codec or Keep())
        else:
            assert recipe.codec(*unit.group) == codec


def test_what_was_not_measured_loses_nothing(scored: Scored) -> None:
    assert scored.scores.unmeasured == (UNMEASURED,)
    (unit,) = [each for each in scored.scores.units if each.unit.name == UNMEASURED]
    assert {candidate.codec for candidate in unit.candidates} == {Keep(), Lossless()}


def test_scores_are_used_again(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.tune.scoring._Scoring", None)  # nothing is encoded
    again = score(scored.checkpoint, scored.calibration, directory=scored.directory)
    assert again.units == scored.scores.units
    assert again.coupling.square.tolist() == scored.scores.coupling.square.tolist()


def test_a_damaged_file_is_refused_and_made_again(scored: Scored, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    save_scores(scored.scores, file)
    fields = json.loads(file.read_text())
    damages: list[dict[str, Any]] = [
        {"version": 9},
        {"units": []},
        {"shrinkage": [[1.0]]},
        {"tokens": 0},
        {"units": [fields["units"][0] | {"weights": -1}]},
    ]
    for damage in damages:
        file.write_text(json.dumps(fields | damage))
        with raises_saying(CheckpointError, file.name):
            load_scores(file)


def test_rare_experts_are_listed(scored: Scored) -> None:
    """Of 300 tokens each expert saw 150 here."""
    assert FEW_TOKENS < 150
    assert scored.scores.rare == ()


def test_a_calibration_without_gradients_is_refused(scored: Scored, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from ders_core.pipeline.calibration import write_calibration

    whole = load_file(scored.calibration)
    inputs = {name: t for name, t in whole.items() if name.endswith(("routed", "moments"))}
    plain = tmp_path / "plain.safetensors"
    write_calibration(plain, scored.checkpoint.identity, 300, inputs)
    with raises_saying(CheckpointError, plain.name, "--gradients"):
        score(scored.checkpoint, plain, directory=tmp_path)


def test_experts_can_be_units(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all experts of a group take and lose is what the group does; with two codecs of each
    part, which are enough to tell."""

    def two(unit: Unit, weights: int, *, gradients: bool) -> list[Codec]:
        bits = 2 if unit.part == "deltas" else 4
        return [Quantized(bits=bits), Lossless()]

    monkeypatch.setattr("ders_core.tune.scoring.codecs_for", two)
    whole, each = (
        score(scored.checkpoint, scored.calibration, per_expert=per_expert, directory=tmp_path)
        for per_expert in (False, True)
    )
    experts = [unit for unit in each.units if unit.unit.expert is not None]
    for group in (unit for unit in whole.units if unit.unit.part == "deltas"):
        mine = [expert for expert in experts if expert.unit.group == group.unit.group]
        assert [expert.unit.expert for expert in mine] == list(range(4))
        for number, candidate in enumerate(group.candidates):
            parts = [expert.candidates[number] for expert in mine]
            for name in ("nbytes", "noise", "output", "router"):
                summed = sum(getattr(part, name) for part in parts)
                assert summed == pytest.approx(getattr(candidate, name), rel=0.02)
    found = solve(each, Bound("share", 0.35))
    recipe = as_recipe(found, scored.checkpoint, scored.calibration)
    for chosen in found.chosen:
        unit = chosen.scored.unit
        if unit.group is not None and unit.expert is not None and chosen.candidate is not None:
            assert recipe.codec(*unit.group, unit.expert) == chosen.candidate.codec
