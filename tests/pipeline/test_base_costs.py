"""What errors of bases cost that experts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.gradient_calibrations import with_gradients

from ders_core.codecs.synthesis import difference
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe

STREAM = {"codec": "entropy", "bits": 2}


@pytest.mark.parametrize(("base", "bases"), [("mean", 1), ({"clusters": 2}, 2)])
def test_each_error_is_made_once_for_all_that_it_costs(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Any, bases: int
) -> None:
    source, calibration = open_checkpoint(mixtral_dir), tmp_path / "c.safetensors"
    with_gradients(source, calibration, routers=True)
    made = list[tuple[int, ...]]()

    def spy(stored: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
        made.append(tuple(stored.shape))
        return difference(stored, origin)

    monkeypatch.setattr("ders_core.pipeline.stored_bases.difference", spy)
    codecs = {"rules": [STREAM], "base_codec": STREAM, "base_error": "shared"}
    recipe = Recipe.model_validate({"name": "b", "base": base, "calibration": calibration} | codecs)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert all(entry.noise_cost and entry.router_noise for entry in report.entries)
    assert sorted(made) == sorted(bases * [group.shape[1:] for group in source.groups()])
