"""Deltas are weight − base, rounded once, however many rows are read at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from ders_core.analysis import deltas
from ders_core.analysis.deltas import Desk
from ders_core.checkpoint import ExpertGroup
from ders_core.compute.buffers import borrow
from ders_core.packed.open import open_checkpoint


@pytest.fixture
def group(mixtral_dir: Path) -> ExpertGroup:
    return open_checkpoint(mixtral_dir).groups()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 10_000])
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("is_plain", [False, True])
def test_values(
    group: ExpertGroup,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    rows: int,
    is_kept: bool,
    is_plain: bool,
) -> None:
    monkeypatch.setattr(deltas, "is_plain", lambda group: is_plain)
    weights = group.read()
    base = weights.float().mean(0).to(weights.dtype)
    monkeypatch.setattr(deltas, "READ_BYTES", rows * base.shape[1] * base.dtype.itemsize)
    with ExitStack() as memory:
        desk = Desk(group, base, dtype, memory, weights if is_kept else None)
        for expert in (0, len(weights) - 1):
            expected = (weights[expert].float() - base.float()).to(dtype)
            assert torch.equal(desk.delta(expert), expected)


def test_one_expert_is_in_memory_as_its_delta_alone(
    group: ExpertGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()

    @contextmanager
    def counted(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        with borrow(shape, dtype) as tensor:
            sizes.append(tensor.nbytes)
            yield tensor

    monkeypatch.setattr(deltas, "borrow", counted)
    base = group.read()[0]
    monkeypatch.setattr(deltas, "READ_BYTES", 2 * base.shape[1] * base.dtype.itemsize)
    with ExitStack() as memory:
        Desk(group, base, base.dtype, memory, None).delta(1)
    assert sorted(sizes) == [base[:2].nbytes, base.nbytes]
