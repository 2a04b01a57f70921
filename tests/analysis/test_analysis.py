"""The tables of a whole checkpoint: what is in them, saved, read, and stopped half-way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.messages import raises_saying

from ders_core.analysis import (
    Analysis,
    analyze,
    analyzer,
    of_group,
)
from ders_core.analysis.tables import COLUMNS
from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.matrix import Matrix
from ders_core.decompose.averages import around_mean
from ders_core.errors import Cancelled, CheckpointError
from ders_core.packed.open import open_checkpoint


def test_every_group_has_its_rows(analysis: Analysis, mixtral_dir: Path) -> None:
    groups = open_checkpoint(mixtral_dir).groups()
    assert analysis.group_keys() == [group.key for group in groups]
    for name, columns in COLUMNS.items():
        table = getattr(analysis, name)
        assert tuple(table.columns) == columns
        assert not table.isna().any().any(), name
    assert len(analysis.similarity) == sum(group.shape[0] ** 2 for group in groups)


def test_norm_ratio_is_that_of_the_decomposition(analysis: Analysis, mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    split = around_mean(checkpoint.group(1, "down"))
    norms = [float(delta.double().norm()) for delta in split.deltas()]
    row = of_group(analysis.groups, 1, "down").iloc[0]
    wanted = np.mean(norms) / float(split.base.double().norm())
    assert row["norm_ratio"] == pytest.approx(wanted, rel=1e-5)


def test_clusters_are_in_the_tables(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor]
) -> None:
    which = [0, 1, 1, 0, 0, 1, 0, 1]
    weights = planted(which)
    tables = analyze(checkpoint_of(weights, planted([0] * 8)), spectra="none")
    assert tables.groups["clusters"].tolist() == [2, 2, 2, 1, 1, 1]
    flat = weights.double().flatten(1)
    starts = torch.stack([flat[[w == start for w in which]].mean(0) for start in (0, 1)])
    left = (flat - starts[which]).square().sum() / (flat - flat.mean(0)).square().sum()
    assert tables.groups["cluster_gain"].tolist() == pytest.approx([float(left)] * 3 + [1.0] * 3)
    assert tables.clusters_of(0, "down") == which
    assert tables.clusters_of(1, "down") == [0] * 8
    sentence = tables.about_clusters(0, "up")
    for fact in (
        "2 sets",
        "{0, 3, 4, 6}, {1, 2, 5, 7}",
        f"{float(left):.2g} ×",
        "clusters: auto",
    ):
        assert fact in sentence
    for fact in ("One base", "8 experts"):
        assert fact in tables.about_clusters(1, "up")


def test_tables_of_version_1_get_their_clusters(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    tables = analyze(checkpoint_of(planted([0, 1, 1, 0, 2, 2, 0, 1] * 2), planted([0] * 16)))
    place = tmp_path / "a"
    tables.save(place)
    for name, columns in (("groups", ["clusters", "cluster_gain"]), ("experts", ["cluster"])):
        getattr(tables, name).drop(columns=columns).to_parquet(place / f"{name}.parquet")
    head = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    (place / "meta.json").write_text(json.dumps(head | {"version": 1}), encoding="utf-8")
    loaded = Analysis.load(place)
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(tables, name))
    (place / "meta.json").write_text(json.dumps(head | {"version": 99}), encoding="utf-8")
    with raises_saying(CheckpointError, "99", "analyse again"):
        Analysis.load(place)


def test_saved_tables_come_back_the_same(analysis: Analysis, tmp_path: Path) -> None:
    analysis.save(tmp_path / "a")
    analysis.save(tmp_path / "a")  # again, over the old one
    loaded = Analysis.load(tmp_path / "a")
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(analysis, name))
    assert loaded.meta == analysis.meta
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    (tmp_path / "a" / "groups.parquet").unlink()
    with raises_saying(CheckpointError, "analyse again"):
        Analysis.load(tmp_path / "a")


def test_json_is_json(analysis: Analysis) -> None:
    data = json.loads(analysis.to_json())
    assert data["verdict"] == "upcycled"
    assert len(data["groups"]) == len(analysis.groups)


def test_only_the_layers_asked_for(mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    tables = analyze(checkpoint, layers=[1], spectra="none")
    assert set(tables.groups["layer"]) == {1}
    assert tables.spectra.empty
    with raises_saying(CheckpointError, "no experts", "layer 9"):
        analyze(checkpoint, layers=[9])


def test_a_group_that_fits_is_read_once(mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte more, and it is read again for its spectra, which are the same."""
    checkpoint = open_checkpoint(mixtral_dir)
    sizes = [math.prod(group.shape) * group.dtype.itemsize for group in checkpoint.groups()]
    assert len(set(sizes)) == 1
    read_into, read, tables = Matrix.read_into, 0, {}

    def counted(matrix: Matrix, out: torch.Tensor, rows: slice) -> None:
        nonlocal read
        read += out.nbytes
        read_into(matrix, out, rows)

    monkeypatch.setattr(Matrix, "read_into", counted)
    for kept, times in ((sizes[0], 1), (sizes[0] - 1, 2)):
        monkeypatch.setattr(analyzer, "KEPT_BYTES", kept)
        read = 0
        tables[kept] = analyze(checkpoint, spectra="exact")
        assert read == times * sum(sizes)
    for name in COLUMNS:
        one, other = (getattr(each, name) for each in tables.values())
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_progress_counts_bytes_and_can_stop(mixtral_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(mixtral_dir)
    analyze(checkpoint, spectra="none", progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (checkpoint.bytes_experts, checkpoint.bytes_experts)

    def stop(done: int, total: int, message: str) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        analyze(checkpoint, progress=stop)
