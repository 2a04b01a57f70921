"""Each verb on a device, with as many waits for ten experts as for two, however many pieces these
are read and computed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.counted_device import Waits, counted_waits
from support.gate_experts import write_each
from support.small_pieces import use_small_pieces

from ders_core.codecs.fitting import lloyd
from ders_core.pipeline import leaving
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

COUNTS = (2, 5, 10)
GROUPS = 3
RULES: list[dict[str, Any]] = [
    {"codec": "quantized", "bits": 2, "grid": "learned"},
    {"projections": ["up"], "codec": "sparse", "drop_rate": 0.9},
    {"projections": ["down"], "codec": "lowrank", "rank": 4, "factor_bits": 4},
]
BASES: list[tuple[str | dict[str, Any], list[dict[str, Any]]]] = [
    ("auto", []),
    ({"clusters": "auto"}, [{"codec": "quantized", "grid": "ternary"}]),
]
"""Kinds of bases, and what these are coded by."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_each(tmp_path_factory.mktemp("verbs"), COUNTS)


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_pieces(monkeypatch)
    monkeypatch.setattr(lloyd, "SWEEPS", 2)  # all are alike


def recipe(base: str | dict[str, Any], base_codec: list[dict[str, Any]]) -> Recipe:
    fields = {"version": 2, "name": "r", "base": base, "base_codec": base_codec, "rules": RULES}
    return Recipe.model_validate(fields)


def assert_same(counts: list[Waits]) -> None:
    assert counts[0].total() > 0
    assert [dict(each) for each in counts] == [dict(counts[0])] * len(counts)
    assert [dict(each.sent) for each in counts] == [dict(counts[0].sent)] * len(counts)


@pytest.mark.parametrize(("base", "base_codec"), BASES, ids=["auto", "coded clusters"])
def test_compress(
    base: str | dict[str, Any], base_codec: list[dict[str, Any]], place: Path, tmp_path: Path
) -> None:
    counts = list[Waits]()
    for number in COUNTS:
        source, packed = place / str(number), tmp_path / str(number)
        with counted_waits() as counted:
            compress(source, packed, recipe(base, base_codec), device="meta")
        counts.append(counted)
        with counted_waits() as counted:  # on the CPU
            assert verify(packed, source).ok
        assert counted.total() == 0
    assert_same(counts)


def test_synthesize(place: Path, tmp_path: Path) -> None:
    counts = list[Waits]()
    for number in COUNTS:
        packed = tmp_path / f"packed{number}"
        compress(place / str(number), packed, recipe("mean", []))
        expected = synthesize(packed, tmp_path / f"cpu{number}")
        with counted_waits() as counted:
            assert synthesize(packed, tmp_path / f"there{number}", device="meta") == expected
        counts.append(counted)
    assert_same(counts)


@pytest.mark.parametrize("number", COUNTS)
def test_waits_grow_by_batches_only(
    number: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaves together is as large as may wait there, whatever it holds."""
    packed = tmp_path / "packed"
    compress(place / str(number), packed, recipe("mean", []))
    size = 24 * 32 * torch.bfloat16.itemsize
    monkeypatch.setattr(leaving, "AT_ONCE", 4 * size)
    with counted_waits() as counted:
        synthesize(packed, tmp_path / "there", device="meta")
    assert counted.total() == -(-GROUPS * number // 4)
