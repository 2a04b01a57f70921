"""Gain, noise and predicted KL of a compression, against their definitions in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from support.codec_support import double
from support.effective_gains import effective, weighted_products
from support.gradient_calibrations import TOKENS, with_gradients

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.predicted import removal_costs, shrinkage_cost
from ders_core.pipeline.recipe_files import check_files
from ders_core.pipeline.sampling import Extent
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

ONE_BIT = {"codec": "quantized", "bits": 1, "group_size": 16}
UNBIASED = {"codec": "entropy", "bits": 1.5, "rounding": "unbiased"}
KNOB = {"codec": "entropy", "knob": 1e-3, "rounding": "unbiased", "steps": "sensitive"}


@pytest.fixture(scope="module")
def measured(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    return with_gradients(open_checkpoint(mixtral_dir), path)


def recipe_of(calibration: Calibration | None, *rules: dict[str, Any]) -> Recipe:
    fields: dict[str, Any] = {"name": "test", "rules": list(rules)}
    return Recipe(**fields, calibration=calibration.path if calibration else None)


def shrinkages(calibration: Calibration) -> dict[tuple[int, str], np.ndarray]:
    """J `[windows, experts]` of every group."""
    keys = [(layer, name) for layer in (0, 1) for name in ("gate", "up", "down")]
    found = {key: calibration.shrinkage(*key) for key in keys}
    return {key: double(each) for key, each in found.items() if each is not None}


def test_reports_say_gain_noise_and_what_noise_costs(
    mixtral_dir: Path, measured: Calibration, tmp_path: Path
) -> None:
    """From the weights that transformers would load, by the definitions."""
    report = compress(mixtral_dir, tmp_path / "out", recipe_of(measured, ONE_BIT))
    original, packed = open_checkpoint(mixtral_dir), open_checkpoint(tmp_path / "out")
    costs, gains = 0.0, {}
    alone, outputs = {}, {}
    for entry in report.entries:
        key = (entry.layer, entry.projection)
        group, other = original.group(*key), packed.group(*key)
        known = measured.curvatures(group)
        assert known is not None
        weights, restored = double(group.read().float()), double(other.read().float())
        base = double(group.read().float().mean(0).to(group.dtype.torch).float())
        deltas, coded = weights - base, restored - base
        gain = (coded * deltas).sum() / (deltas**2).sum()
        noise = np.sqrt(((coded - gain * deltas) ** 2).sum() / (deltas**2).sum())
        assert entry.gain == pytest.approx(gain, rel=1e-4)
        assert entry.noise == pytest.approx(noise, rel=1e-3)
        cost, products = 0.0, np.zeros(2)
        for decoded, delta, each in zip(coded, deltas, known, strict=True):
            rows, columns = double(each.rows), double(each.columns)
            error = decoded - effective(decoded, delta, each) * delta
            cost += (np.outer(rows, columns) / rows.sum() * error**2).sum() / 2
            products += weighted_products(decoded, delta, each)
        assert entry.noise_cost == pytest.approx(cost, rel=1e-4)
        assert entry.router_noise is None  # the calibration does not know
        gains[key] = 0.4 * gain + 0.6 * products[0] / products[1]
        assert entry.effective_gain == pytest.approx(gains[key], rel=1e-4)
        costs += cost
        moments = measured.moments(*key)
        assert moments is not None
        power = double(moments.diagonal())  # the test's moments are diagonal
        outputs[key] = ((restored - weights) ** 2 @ power).sum() / (weights**2 @ power).sum()
        alone[key] = cost
    for layer in (0, 1):
        gate, up, down = ((layer, name) for name in ("gate", "up", "down"))
        costs += (alone[gate] * outputs[up] + alone[up] * outputs[gate]) / 2
        costs += alone[down] * ((1 + outputs[gate]) * (1 + outputs[up]) - 1)
    total = sum((1 - gains[key]) * each.sum(1) for key, each in shrinkages(measured).items())
    wanted = costs + (total**2).sum() / TOKENS / 2
    assert report.predicted_kl == pytest.approx(wanted, rel=1e-3)
    verified = verify(tmp_path / "out", mixtral_dir).groups
    for seen, entry in zip(verified, report.entries, strict=True):
        assert (seen.gain, seen.noise) == pytest.approx((entry.gain, entry.noise), rel=1e-4)


def test_a_code_without_loss_costs_nothing(
    mixtral_dir: Path, measured: Calibration, tmp_path: Path
) -> None:
    report = compress(mixtral_dir, tmp_path / "out", recipe_of(measured, {"codec": "lossless"}))
    assert report.predicted_kl == 0
    assert {(entry.gain, entry.noise) for entry in report.entries} == {(1.0, 0.0)}


def test_removing_all_deltas_costs_the_sum_of_the_parts(measured: Calibration) -> None:
    """½ 1ᵀ M 1 with M = JᵀJ / T, by brute force over all experts of all groups."""
    matrices = shrinkages(measured)
    whole = np.concatenate(list(matrices.values()), 1)
    matrix = whole.T @ whole / TOKENS
    ones = np.ones(len(matrix))
    assert shrinkage_cost(measured, dict.fromkeys(matrices, 0.0)) == pytest.approx(
        ones @ matrix @ ones / 2
    )
    parts = np.concatenate([removal_costs(measured, matrices)[key] for key in matrices])
    alone = matrix.diagonal() / 2
    np.testing.assert_allclose(parts, np.maximum(matrix @ ones / 2, alone), rtol=1e-6)
    scaled = {key: 0.1 * number for number, key in enumerate(matrices)}
    lost = np.concatenate([np.full(j.shape[1], 1 - scaled[key]) for key, j in matrices.items()])
    assert shrinkage_cost(measured, scaled) == pytest.approx(lost @ matrix @ lost / 2)


def test_one_knob_gives_the_sensitive_more_bits(
    mixtral_dir: Path, measured: Calibration, tmp_path: Path
) -> None:
    """A doubled knob doubles all errors where steps are coarse, and quadruples their squares where
    they are fine (of which bfloat16's own rounding is a part that stays)."""
    kls = []
    for knob in (1e-3, 2e-3):
        out = tmp_path / str(knob)
        report = compress(mixtral_dir, out, recipe_of(measured, {**KNOB, "knob": knob}))
        kls.append(sum(entry.noise_cost or 0 for entry in report.entries))
    assert 1.5 < kls[1] / kls[0] < 4.2


def test_a_recipe_that_needs_a_calibration_is_refused_without_one(
    mixtral_dir: Path, tmp_path: Path, calibration_without_gradients: Path
) -> None:
    with pytest.raises(ValidationError, match="--gradients"):
        recipe_of(None, KNOB)
    with pytest.raises(ValidationError, match="rule 2"):
        recipe_of(None, ONE_BIT, {**UNBIASED, "steps": "sensitive"})
    fields: dict[str, Any] = {"name": "test", "rules": [KNOB]}
    recipe = Recipe(**fields, calibration=calibration_without_gradients)
    with pytest.raises(CheckpointError, match="gradients"):
        compress(mixtral_dir, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def calibration_without_gradients(mixtral_dir: Path, tmp_path: Path) -> Path:
    from safetensors.torch import load_file

    from ders_core.pipeline.calibration import write_calibration

    checkpoint = open_checkpoint(mixtral_dir)
    whole = with_gradients(checkpoint, tmp_path / "whole.safetensors")
    kept = {
        name: tensor
        for name, tensor in load_file(whole.path).items()
        if name.endswith(("routed", "moments"))
    }
    path = tmp_path / "without.safetensors"
    write_calibration(path, checkpoint.identity, TOKENS, kept)
    return path


@pytest.mark.parametrize(
    "rule",
    [ONE_BIT, {**ONE_BIT, "gain": "unbiased"}, UNBIASED, {**UNBIASED, "gain": "auto"}, KNOB],
    ids=str,
)
def test_a_forecast_is_near_what_comes(
    rule: dict[str, Any], mixtral_dir: Path, measured: Calibration, tmp_path: Path
) -> None:
    """Experts of the tests are small, so the sample is all of them, and the forecast exact."""
    recipe, source = recipe_of(measured, rule), open_checkpoint(mixtral_dir)
    plan = resolve(recipe, source)
    check_files(recipe, source)
    told = forecast(plan, source)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert told.predicted_kl == pytest.approx(report.predicted_kl, rel=1e-6)
    assert told.bytes_after == pytest.approx(report.bytes_after, rel=0.02)
    for entry, came in zip(told.entries, report.entries, strict=True):
        assert entry.gain == pytest.approx(came.gain)
        assert entry.noise == pytest.approx(came.noise)
        assert entry.bytes_after == came.bytes_after


def test_a_forecast_from_few_rows_is_near(
    mixtral_dir: Path, measured: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ders_core.pipeline import sampling as module

    recipe, source = (
        recipe_of(measured, {**ONE_BIT, "gain": "unbiased"}),
        open_checkpoint(mixtral_dir),
    )
    plan = resolve(recipe, source)
    whole = forecast(plan, source)
    monkeypatch.setattr(module, "BLOCK", 4)
    sample = forecast(plan, source, extent=Extent(32 * 20, 32 * 20, 4))
    for entry, other in zip(sample.entries, whole.entries, strict=True):
        assert entry.noise == pytest.approx(other.noise, rel=0.1)
        assert entry.noise != other.noise
        assert entry.noise_cost == pytest.approx(other.noise_cost, rel=0.5)


@pytest.mark.parametrize("base", ["routed", "auto", "median"])
def test_a_forecast_takes_the_base_that_the_run_takes(
    base: str, mixtral_dir: Path, measured: Calibration, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate({**recipe_of(measured, ONE_BIT).model_dump(), "base": base})
    source = open_checkpoint(mixtral_dir)
    told = forecast(resolve(recipe, source), source)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert [entry.base for entry in told.entries] == [entry.base for entry in report.entries]
    assert [entry.gain for entry in told.entries] == pytest.approx(
        [entry.gain for entry in report.entries]
    )


def test_a_low_rank_is_not_told_by_a_sample(mixtral_dir: Path, measured: Calibration) -> None:
    recipe = recipe_of(measured, {"codec": "lowrank", "rank": 2, "layers": "0"})
    source = open_checkpoint(mixtral_dir)
    told = forecast(resolve(recipe, source), source)
    assert told.predicted_kl is None
    assert [entry.gain for entry in told.entries] == [None] * 3 + [1.0] * 3
