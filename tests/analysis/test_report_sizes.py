"""Bytes of reports: never more than was foretold, and not much less."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.shell import ders, error_of

from ders_core.analysis import Analysis, analyze
from ders_core.analysis.report_sizes import json_bytes, parquet_bytes
from ders_core.checkpoint import Checkpoint
from ders_core.packed.open import open_checkpoint


def parquet_of(tables: Analysis) -> int:
    content = io.BytesIO()
    tables.groups.to_parquet(content)
    return len(content.getvalue())


def test_they_are_bounded(analysis: Analysis, mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    text = len(analysis.to_json().encode())
    assert text <= json_bytes(checkpoint.groups(), "curve") <= 2 * text
    bare = analyze(checkpoint, layers=[1], spectra="none")
    groups = [group for group in checkpoint.groups() if group.layer == 1]
    text = len(bare.to_json().encode())
    assert text <= json_bytes(groups, "none") <= 2 * text
    for tables, of in ((analysis, checkpoint.groups()), (bare, groups)):
        size = parquet_of(tables)
        assert size <= parquet_bytes(of) <= 4 * size


def test_the_largest_numbers_fit(checkpoint_of: Callable[..., Checkpoint]) -> None:
    """Weights near the ends of float32, of both signs, so that figures have long exponents."""
    random = torch.Generator().manual_seed(0)
    for size in (1e-30, 1e15):
        weights = size * torch.randn(5, 6, 7, generator=random)
        checkpoint = checkpoint_of(weights, weights.flip(0))
        tables = analyze(checkpoint)
        assert len(tables.to_json().encode()) <= json_bytes(checkpoint.groups(), "curve")


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_full_disk_is_seen_before_the_analysis(
    mixtral_dir: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    groups = open_checkpoint(mixtral_dir).groups()
    needed = json_bytes(groups, "none") if suffix == "json" else parquet_bytes(groups)
    free = SimpleNamespace(total=1 << 40, used=0, free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr("ders_core.analysis.analyze", never)
    done = ders("analyze", mixtral_dir, "-o", tmp_path / f"out.{suffix}")
    assert done.returncode == 1
    assert "needs" in error_of(done)
    assert not list(tmp_path.iterdir())
