"""The demo as users build it: some minutes of training, and what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ders_core.demo import build_demo


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a machine shared with other work
def test_the_full_demo_has_experts_that_matter(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = build_demo(out)
    figures = result.perplexities
    assert figures["moe"] < figures["dense"]
    assert figures["base_only"] > 1.10 * figures["moe"]
    assert result.mean_cosine > 0.5
    kept = json.loads((out / "demo.json").read_text())
    assert kept["perplexities"] == figures
    assert kept["mean_cosine"] == result.mean_cosine
    assert kept["steps"] == {"dense": 260, "moe": 130}
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 60e6
    for name in ("calibration.txt", "heldout.txt"):
        assert 100_000 <= (out / name).stat().st_size <= 300_000
