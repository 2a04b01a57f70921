"""How an analysis reads: past the page cache what it reads once, and by all threads at once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ders_core.analysis import analyze, analyzer, similarity
from ders_core.analysis.similarity import group_statistics
from ders_core.analysis.spectra import Spectra
from ders_core.checkpoint import ExpertGroup, streaming
from ders_core.compute import buffers
from ders_core.compute.threads import threads_of_torch
from ders_core.files import cold_reads
from ders_core.files.cold_reads import LARGE_BYTES, fill
from ders_core.packed.open import open_checkpoint

MakeGroup = Callable[[torch.Tensor], ExpertGroup]


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no such reads here")
@pytest.mark.parametrize(
    ("spectra", "kept", "is_once"),
    [("none", 0, True), ("exact", 1 << 30, True), ("exact", 0, False)],
)
def test_what_is_read_once_goes_past_the_cache(
    mixtral_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    spectra: Spectra,
    kept: int,
    is_once: bool,
) -> None:
    """However slow the disk is. What is read twice may come from the cache the second time."""
    checkpoint, count, read = open_checkpoint(mixtral_dir), 0, os.preadv

    def counted(handle: int, places: list[memoryview], begin: int) -> int:
        nonlocal count
        count += 1
        return read(handle, places, begin)

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(cold_reads, "LARGE_BYTES", 1)
    monkeypatch.setattr(cold_reads._Pace, "is_slow", True)
    monkeypatch.setattr(cold_reads, "_held", lambda *place: np.zeros(-(-place[-1] // 4096), bool))
    monkeypatch.setattr(analyzer, "KEPT_BYTES", kept)
    analyze(checkpoint, spectra=spectra)
    experts = sum(len(group.matrices) for group in checkpoint.groups())
    assert count >= experts if is_once else not count


def noted_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets how many bytes each read of a tensor takes from now on."""
    sizes = list[int]()

    def noted(path: Path, begin: int, memory: np.ndarray) -> None:
        sizes.append(len(memory))
        fill(path, begin, memory)

    monkeypatch.setattr("ders_core.files.tensor.fill", noted)
    return sizes


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_reads_of_many_experts_are_large_enough_to_go_past_the_cache(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Of more than READ_BYTES of all experts together, where less is too little of each."""
    experts = similarity.READ_BYTES // LARGE_BYTES + 8
    group = group_of(torch.zeros(experts, 2 * LARGE_BYTES // 2048, 1024, dtype=torch.bfloat16))
    sizes = noted_sizes(monkeypatch)
    with threads_of_torch(threads):
        group_statistics(group)
    assert sum(sizes) == group.nbytes
    whole = streaming.SLAB_BYTES // experts // 2048 * 2048  # and what is left over
    assert whole >= LARGE_BYTES
    assert set(sizes) <= {whole, 2 * LARGE_BYTES - whole}


@pytest.mark.parametrize("threads", [1, 5, 16, 23])
def test_all_threads_read_and_work_in_bounded_memory(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A chunk of two rows for each at least, of eight in a slab."""
    row = 2 * 16 * 4
    monkeypatch.setattr("ders_core.analysis.chunk_sums.LOOP_VALUES", 2 * row // 4)
    monkeypatch.setattr(similarity, "READ_BYTES", 8 * row)
    for module in (similarity, streaming):
        monkeypatch.setattr(module, "SLAB_BYTES", 16 * row)
    borrowed, borrow = list[int](), buffers.borrow

    def counted(shape: tuple[int, ...], dtype: torch.dtype) -> AbstractContextManager[torch.Tensor]:
        borrowed.append(math.prod(shape) * dtype.itemsize)
        return borrow(shape, dtype)

    monkeypatch.setattr(streaming, "borrow", counted)
    group = group_of(torch.randn(2, 160, 16))
    with threads_of_torch(threads):
        group_statistics(group)
    assert len(borrowed) == threads + 1
    assert sum(borrowed) <= streaming.SLABS * streaming.SLAB_BYTES
    borrowed.clear()
    with threads_of_torch(48):  # there is memory for so many chunks
        group_statistics(group)
    assert borrowed == [2 * row] * 24


def test_chunks_of_a_slab_are_shared_out_where_few_threads_could_read(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slab that is one large read of each expert, three are in memory."""
    row = 2 * 16 * 4
    monkeypatch.setattr("ders_core.analysis.chunk_sums.LOOP_VALUES", 2 * row // 4)
    for module in (similarity, streaming):
        monkeypatch.setattr(module, "SLAB_BYTES", 16 * row)
    monkeypatch.setattr(similarity, "LARGE_BYTES", 8 * row)
    group, used = group_of(torch.randn(2, 160, 16)), list[int]()
    of_slabs = streaming.of_slabs

    def noted(*given: Any) -> Any:
        used.append(given[-1])
        return of_slabs(*given)

    monkeypatch.setattr(similarity, "of_slabs", noted)
    for threads in (2, 3, 16):
        with threads_of_torch(threads):
            group_statistics(group)
    assert used == [3]
