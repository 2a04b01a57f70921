"""Predicted KL against the measured one, of the demo with a code that knows its inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ders_core.calibrate import calibrate
from ders_core.demo.unpack import unpack_demo
from ders_core.evaluate import evaluate
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe

TOKENS, WINDOW = 2048, 32
"""Each window tells once what all deltas together cost, so that there must be many."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("demo") / "demo"
    unpack_demo(place)
    calibrate(
        place / "moe",
        place / "c.safetensors",
        text=place / "calibration.txt",
        max_tokens=TOKENS,
        window=WINDOW,
        gradients=True,
        dtype=torch.float32,
    )
    return place


def test_missing_deltas_of_low_rank_are_told_within_a_factor_of_two(
    demo: Path, tmp_path: Path
) -> None:
    """By the plain gain it would be three times what is measured, by correlation alone a third
    (`benchmarks/calibrated_gains.py`)."""
    rules = ({"codec": "lowrank", "rank": 16},)
    recipe = Recipe.model_validate(
        {"name": "test", "calibration": demo / "c.safetensors", "rules": rules}
    )
    predicted = compress(demo / "moe", tmp_path / "packed", recipe).predicted_kl
    assert predicted is not None
    measured = evaluate(
        tmp_path / "packed",
        text=demo / "heldout.txt",
        reference=demo / "moe",
        max_tokens=TOKENS,
        window=WINDOW,
        dtype=torch.float32,
    )
    assert measured.kl is not None
    assert measured.kl / 2 < predicted < 2 * measured.kl
