"""The KL of a whole from its parts: as reports have it, and its slopes by differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.gradient_calibrations import with_gradients

from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.predicted import GroupCost, OtherCost, predicted_kl
from ders_core.tune.coupling import Coupling, Loss

KEYS = [(layer, name) for layer in (0, 1) for name in ("gate", "up", "down")]


def loss_of(seed: int, size: float) -> Loss:
    random = np.random.default_rng(seed)
    noise, output = ({key: size * random.random() for key in KEYS} for _ in range(2))
    router = {layer: size * random.random() for layer in (-1, 0, 1)}
    return Loss(noise, output, router, size * random.random(), size * random.random(len(KEYS)))


@pytest.fixture(scope="module")
def coupling(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Coupling:
    source = open_checkpoint(mixtral_dir)
    path = tmp_path_factory.mktemp("coupling") / "c.safetensors"
    return Coupling.of(with_gradients(source, path, routers=True), [(key, None) for key in KEYS])


@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_it_is_what_reports_predict(mixtral_dir: Path, tmp_path: Path, size: float) -> None:
    calibration = with_gradients(open_checkpoint(mixtral_dir), tmp_path / "c", routers=True)
    coupling = Coupling.of(calibration, [(key, None) for key in KEYS])
    loss = loss_of(1, size)
    costs = [
        GroupCost(
            key,
            "mean",
            1 - float(loss.missing[number]),
            loss.noise[key],
            loss.output[key] ** 0.5,
            loss.router[key[0]] if key[1] == "gate" else 0.0,
        )
        for number, key in enumerate(KEYS)
    ]
    other = OtherCost(0.1, loss.others, loss.router[-1], -1)
    expected = predicted_kl(calibration, costs, [other])
    assert coupling.kl(loss) == pytest.approx(expected, rel=2e-3)


def test_each_expert_can_be_a_column(mixtral_dir: Path, tmp_path: Path) -> None:
    calibration = with_gradients(open_checkpoint(mixtral_dir), tmp_path / "c")
    columns = [((0, "up"), expert) for expert in range(4)]
    each, whole = Coupling.of(calibration, columns), Coupling.of(calibration, [((0, "up"), None)])
    assert each.square.sum() == pytest.approx(whole.square.sum())


@pytest.mark.parametrize("size", [1e-3, 0.05])
def test_slopes_are_those_of_the_kl(coupling: Coupling, size: float) -> None:
    loss = loss_of(2, size)
    slopes, before, step = coupling.slopes(loss), coupling.kl(loss), 1e-5 * size
    for field in ("noise", "output", "router"):
        values = getattr(loss, field)
        for key in values:
            moved = replace(loss, **{field: values | {key: values[key] + step}})
            slope = getattr(slopes, field).get(key, 0.0)
            assert (coupling.kl(moved) - before) / step == pytest.approx(slope, rel=0.03, abs=1e-4)
    for column, missing in enumerate(loss.missing):
        moved_by = np.zeros_like(loss.missing)
        moved_by[column] = step
        moved = replace(loss, missing=loss.missing + moved_by)
        slope = slopes.missing[column] + slopes.square[column] * missing
        assert (coupling.kl(moved) - before) / step == pytest.approx(slope, rel=1e-3)


def test_apart_is_never_less_for_what_shrinks_alike(coupling: Coupling) -> None:
    """The sum of squares costs at least what comes of a gain that is the same everywhere."""
    missing = np.full(len(KEYS), 0.3)
    loss = replace(loss_of(3, 0.0), missing=missing)
    bound = float(coupling.apart(loss).square @ missing**2) / 2
    assert coupling.kl(loss) <= bound * (1 + 1e-9)
