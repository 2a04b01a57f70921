"""What a low rank does to outputs, foretold from whole matrices of a few experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.codec_support import double

from ders_core.checkpoint import Checkpoint
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import SIDES, write_calibration
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe

TOKENS = 10**9
"""So many that correlations of inputs are believed as they are."""
RANK = 5
KEY = 0, "up"


@pytest.fixture(scope="module")
def source(mixtral_dir: Path) -> Checkpoint:
    return open_checkpoint(mixtral_dir)


@pytest.fixture(scope="module")
def moments(source: Checkpoint) -> torch.Tensor:
    """Of inputs that depend on each other, some loud and some quiet."""
    width = source.group(*KEY).shape[2]
    inputs = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(2))
    inputs *= torch.logspace(0, -1, width)
    inputs[:, 1:] += 0.7 * inputs[:, :-1]
    return inputs.T @ inputs / len(inputs)


@pytest.fixture(scope="module")
def calibration(source: Checkpoint, moments: torch.Tensor, tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for group in source.groups():
        experts, _, width = group.shape
        tensors[f"{group.layer}.routed"] = torch.full((experts,), TOKENS // 2)
        of_inputs = moments if width == len(moments) else torch.eye(width)
        tensors[f"{group.layer}.{SIDES[group.projection]}.moments"] = of_inputs
    write_calibration(path, source.identity, TOKENS, tensors)
    return path


def recipe_of(calibration: Path | None, **fields: Any) -> Recipe:
    rule = {"layers": str(KEY[0]), "projections": [KEY[1]], "codec": "lowrank", **fields}
    return Recipe.model_validate({"name": "test", "calibration": calibration, "rules": [rule]})


def told_of(recipe: Recipe, source: Checkpoint, *, whole: bool) -> Forecast:
    return forecast(resolve(recipe, source), source, whole=whole)


def test_the_error_of_outputs_is_what_the_best_directions_leave(
    source: Checkpoint, moments: torch.Tensor, calibration: Path
) -> None:
    """E‖(Δ − Δ_r)x‖² is the sum of the other σ² of Δ·C, with C·Cᵀ = E[x xᵀ]; in float64, with an
    eigenvalue decomposition in the place of triangular factors."""
    weights = double(source.group(*KEY).read().float())
    deltas = weights - double(source.group(*KEY).read().float().mean(0))
    squares, vectors = np.linalg.eigh(double(moments))
    root = vectors * np.sqrt(squares)
    tail = sum(
        (np.linalg.svd(delta @ root, compute_uv=False)[RANK:] ** 2).sum() for delta in deltas
    )
    wanted = np.sqrt(tail / ((weights @ root) ** 2).sum())
    told = told_of(recipe_of(calibration, rank=RANK), source, whole=True)
    (entry,) = (entry for entry in told.entries if entry.is_replaced)
    assert len(deltas) <= 4  # the sample is all of them
    assert entry.rel_error_output == pytest.approx(wanted, rel=2e-3)


def test_it_is_what_a_run_measures(source: Checkpoint, calibration: Path, tmp_path: Path) -> None:
    recipe = recipe_of(calibration, rank=RANK)
    told = told_of(recipe, source, whole=True)
    report = compress(source.path, tmp_path / "out", recipe)
    assert told.bytes_after == report.bytes_after
    for foretold, measured in zip(told.entries, report.entries, strict=True):
        assert foretold.rel_error_output == measured.rel_error_output
        assert (foretold.gain, foretold.noise) == (measured.gain, measured.noise)


def test_rows_alone_do_not_tell_it(source: Checkpoint, calibration: Path) -> None:
    """Nor is it told where the rank depends on the deltas of all experts, or on all bases."""
    by_energy = {"codec": "lowrank", "energy": 0.9}
    of_base = recipe_of(calibration, rank=RANK).changed(base_codec=[by_energy])
    for recipe, whole, is_exact in (
        (recipe_of(calibration, rank=RANK), False, True),
        (recipe_of(calibration, energy=0.9), True, False),
        (of_base, True, False),
    ):
        told = told_of(recipe, source, whole=whole)
        (entry,) = (entry for entry in told.entries if entry.is_replaced)
        assert (entry.gain, entry.rel_error_output) == (None, None)
        assert told.exact == is_exact


def test_without_a_calibration_it_tells_gain_and_noise(source: Checkpoint) -> None:
    told = told_of(recipe_of(None, rank=RANK), source, whole=True)
    (entry,) = (entry for entry in told.entries if entry.is_replaced)
    assert entry.rel_error_output is None
    assert entry.gain is not None
    assert 0 < entry.gain < 1
