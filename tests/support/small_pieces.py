"""Small models read and computed in many pieces, as large ones are."""

from __future__ import annotations

import pytest


def use_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slabs for each group and several pieces for each of these: more for more experts, so
    that what a device is waited for in each of them shows."""
    for place, size in (
        ("checkpoint.streaming.SLAB_BYTES", 1 << 12),
        ("compute.pieces.CHUNK", 1 << 9),
        ("compute.pieces.ACCELERATOR_CHUNK", 1 << 9),
        ("analysis.chunk_sums.CHUNK_VALUES", 1 << 9),
        ("analysis.dwarfs.CHUNK_VALUES", 1 << 9),
    ):
        monkeypatch.setattr(f"ders_core.{place}", size)
