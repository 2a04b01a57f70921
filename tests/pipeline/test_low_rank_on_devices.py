"""A checkpoint of low rank, compressed on a device: with as many waits for many experts as for
few, and with the errors of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.counted_device import Waits, counted_waits
from support.gate_experts import write_each

from ders_core.pipeline.compress import compress
from ders_core.pipeline.report import Report
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

FEW, MANY = 2, 5
RULES: list[dict[str, Any]] = [
    {"codec": "lowrank", "rank": 5},
    {"projections": ["up"], "codec": "lowrank", "energy": 0.6, "factor_bits": 4},
    {
        "projections": ["down"],
        "codec": "chain",
        "stages": [{"codec": "lowrank", "rank": 2}, {"codec": "quantized", "bits": 2}],
    },
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_each(tmp_path_factory.mktemp("low_rank"), (FEW, MANY))


def compressed(source: Path, out: Path, device: str) -> Report:
    recipe = {"version": 2, "name": "r", "base": "auto", "rules": RULES}
    return compress(source, out, Recipe.model_validate(recipe), device=device)


def errors(report: Report) -> list[dict[str, float]]:
    """‖Ŵ−W‖/‖W‖ of each group by its bases, also those that were not taken."""
    return [{**entry.other_bases, entry.base: entry.rel_error_weight} for entry in report.entries]


def assert_near(found: Report, expected: Report) -> None:
    for one, other in zip(errors(found), errors(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_device_is_waited_for_as_often_for_many(place: Path, tmp_path: Path) -> None:
    counts = list[Waits]()
    for number in (FEW, MANY):
        source = place / str(number)
        with counted_waits() as counted:
            there = compressed(source, tmp_path / f"there{number}", "meta")
        assert verify(tmp_path / f"there{number}", source).ok
        assert_near(there, compressed(source, tmp_path / f"here{number}", "cpu"))
        counts.append(counted)
    assert (counts[0], counts[0].sent) == (counts[1], counts[1].sent)


@pytest.mark.gpu
def test_a_gpu_makes_the_errors_of_the_cpu(place: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there, here = (
        compressed(place / str(MANY), tmp_path / device, device) for device in ("cuda", "cpu")
    )
    assert verify(tmp_path / "cuda", place / str(MANY)).ok
    assert_near(there, here)
