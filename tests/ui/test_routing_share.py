"""How often experts are chosen, read without torch, against the calibration's own reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ders_core import figures
from ders_core.analysis import analyze
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration, write_calibration
from ders_core.recipe import Recipe
from ders_core.ui.routing_share import routing_shares


def calibrated(path: Path, identity: str, counts: list[int]) -> Recipe:
    write_calibration(path, identity, 9, {"1.routed": torch.tensor(counts)})
    return Recipe(name="r", rules=(), calibration=path)


def test_shares_of_a_layer(mixtral_dir: Path, workspace: Workspace) -> None:
    source, path = open_checkpoint(mixtral_dir), workspace.path / "c.safetensors"
    recipe = calibrated(path, source.identity, [1, 2, 0, 5])
    shares = routing_shares(recipe, source, 1, 4)
    assert shares == pytest.approx(Calibration.open(path).use(1).tolist())
    assert shares is not None
    bars, dots = figures.norm_bars(analyze(source, spectra="none"), 1, "up", shares).data
    assert tuple(dots.y) == pytest.approx([100 * share for share in shares])
    assert list(dots.x) == list(bars.x) == ["E0", "E1", "E2", "E3"]
    assert dots.yaxis == "y2"


def test_what_does_not_tell_them(
    mixtral_dir: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = open_checkpoint(mixtral_dir), workspace.path / "c.safetensors"
    recipe = calibrated(path, source.identity, [1, 2, 0, 5])
    assert routing_shares(Recipe(name="r", rules=()), source, 1, 4) is None
    assert routing_shares(recipe, source, 0, 4) is None  # a layer that was not measured
    assert routing_shares(recipe, source, 1, 8) is None
    assert routing_shares(calibrated(path, source.identity, [0] * 4), source, 1, 4) is None
    assert routing_shares(calibrated(path, "0" * 64, [1, 2, 0, 5]), source, 1, 4) is None
    recipe = calibrated(path, source.identity, [1, 2, 0, 5])
    assert routing_shares(recipe, source, 1, 4) is not None
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "roots", (mixtral_dir,))  # it lies elsewhere
        assert routing_shares(recipe, source, 1, 4) is None
    path.unlink()
    assert routing_shares(recipe, source, 1, 4) is None
