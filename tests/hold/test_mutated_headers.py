"""Damaged headers: read as safetensors' own library reads them, or refused as it refuses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from support.mutations import damaged_weights

from ders_core.errors import CheckpointError
from ders_core.files.header import read_header


def test_headers_are_read_as_safetensors_own_library_reads_them(
    tmp_path: Path, rounds: Callable[[int, int], int], tally: Counter[str]
) -> None:
    tensors = {"a.0.w": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int8)}
    whole = save(tensors | {"c": torch.ones(1).bfloat16()}, {"format": "pt", "k": "v"})
    file = tmp_path / "a.safetensors"
    agreed = {True: 0, False: 0}
    for seed in range(rounds(400, 9000)):
        content = damaged_weights(Random(f"header {seed}"), whole)
        tally["damaged headers"] += 1
        file.write_bytes(content)
        try:
            theirs = {name: (each.dtype, tuple(each.shape)) for name, each in load(content).items()}
        except SafetensorError:
            with pytest.raises(CheckpointError):
                read_header(file)
            agreed[False] += 1
            continue
        ours = {
            name: (each.dtype.torch, tuple(each.shape))
            for name, each in read_header(file)[0].items()
        }
        assert ours == theirs, seed
        agreed[True] += 1
    assert min(agreed.values()) > 10
