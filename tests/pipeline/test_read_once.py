"""Groups that are held, against their files; and how often compression reads an expert's bytes."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from support.compress_support import Snapshot
from support.counted_reads import counted_reads

from ders_core.checkpoint import held as held_module
from ders_core.checkpoint.held import held
from ders_core.codecs import Quantized
from ders_core.decompose.base import Base
from ders_core.decompose.bases.auto import AutoBase
from ders_core.decompose.bases.mean import MeanBase
from ders_core.decompose.bases.none import NoBase
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import ClusteredBase, Recipe, Rule


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    return counted_reads(monkeypatch)


def test_a_held_group_gives_what_its_file_gives(mixtral_dir: Path, reads: Counter[int]) -> None:
    group = open_checkpoint(mixtral_dir).group(1, "down")
    wanted, group = group.read(), held(group)
    reads.clear()
    for expert, rows in ((1, slice(2, 5)), (1, slice(4, 9)), (0, slice(3, 3)), (1, slice(9, None))):
        piece = group.read(expert, rows)
        assert torch.equal(piece, wanted[expert, rows])
        piece.zero_()  # is the caller's
    assert torch.equal(group.read(), wanted)
    into = torch.empty_like(wanted[:, 1:4])
    group.read_into(into, slice(1, 4))
    assert torch.equal(into, wanted[:, 1:4])
    for times in (1, 2):  # the first time its memory is given away
        for matrix, values in zip(group.experts, wanted, strict=True):
            lend = partial(torch.empty_like, values)
            assert torch.equal(matrix.read_whole(lend), values)
        assert set(reads.values()) == {times}
    assert torch.equal(group.read(), wanted)
    assert (group.shape, group.dtype, group.nbytes) == (wanted.shape, group.dtype, wanted.nbytes)


@pytest.mark.parametrize(
    ("base", "when_held", "when_read"),
    [
        (MeanBase(), 1, 2),
        (ClusteredBase(clusters=2), 1, 3),
        (AutoBase(), 3, 4),  # held until the deltas of the first base are encoded
    ],
    ids=lambda each: each.name if isinstance(each, Base) else str(each),
)
def test_what_is_held_is_read_less_often(
    base: Base,
    when_held: int,
    when_read: int,
    mixtral_dir: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    reads: Counter[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe(name="x", rules=(Rule(codec=Quantized(bits=2)),), base=base)
    groups = open_checkpoint(mixtral_dir).groups()
    experts = {
        byte
        for group in groups
        for matrix in group.experts
        for tensor in matrix.info.sources()
        for byte in range(tensor.begin, tensor.end)
    }
    compress(mixtral_dir, tmp_path / "held", recipe)
    assert {reads[byte] for byte in experts} == {when_held}
    reads.clear()
    monkeypatch.setattr(held_module, "HELD_BYTES", max(group.nbytes for group in groups) - 1)
    monkeypatch.setattr("ders_core.pipeline.holding.MOST_BYTES", 0)
    compress(mixtral_dir, tmp_path / "read", recipe)
    assert {reads[byte] for byte in experts} == {when_read}
    assert snapshot(tmp_path / "held") == snapshot(tmp_path / "read")


def test_without_a_base_no_group_is_in_memory(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.pipeline.encode.held", lambda group: pytest.fail("held"))
    recipe = Recipe(name="x", rules=(Rule(codec=Quantized(bits=2)),), base=NoBase())
    compress(mixtral_dir, tmp_path / "out", recipe)
