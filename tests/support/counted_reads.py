"""How many bytes reads ask for, how often each is read, and that of the experts of a group."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ders_core.checkpoint import ExpertGroup
from ders_core.files import cold_reads


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Position of a byte in its file -> how often it was read from now on, in all threads."""
    counts, lock, fill = Counter[int](), threading.Lock(), cold_reads.fill

    def counted(path: Path, begin: int, memory: np.ndarray) -> None:
        with lock:
            counts.update(range(begin, begin + len(memory)))
        fill(path, begin, memory)

    monkeypatch.setattr("ders_core.files.tensor.fill", counted)
    return counts


def read_sizes(monkeypatch: pytest.MonkeyPatch, above: int = 0) -> list[int]:
    """How many bytes each read of a file asks for from now on, of those that ask for more than
    `above`, in all threads."""
    sizes, fill = list[int](), cold_reads.fill

    def noted(path: Path, begin: int, memory: np.ndarray) -> None:
        if len(memory) > above:
            sizes.append(len(memory))
        fill(path, begin, memory)

    monkeypatch.setattr("ders_core.files.tensor.fill", noted)
    return sizes


def times_read(counts: Counter[int], group: ExpertGroup) -> list[set[int]]:
    """Of each expert, how often its bytes were read; one number if all were alike."""
    return [
        {
            counts[byte]
            for tensor in matrix.info.sources()
            for byte in range(tensor.begin, tensor.end)
        }
        for matrix in group.experts
    ]
