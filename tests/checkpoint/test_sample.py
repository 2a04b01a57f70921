"""The few values of all experts of a group that a first look reads, each file opened once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from support.large_workspaces import make_many_tensors
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint


def test_it_is_what_each_matrix_gives(tmp_path: Path) -> None:
    make_many_tensors(tmp_path / "moe", 2, 6, shards=2)
    for group in open_checkpoint(tmp_path / "moe").groups():
        sample = group.middle(3, 12)
        each = [matrix.read().float().numpy() for matrix in group.experts]
        count = sample.shape[1] // group.shape[2]
        begin = (group.shape[1] - count) // 2
        assert sample.shape[0] == 6
        assert 1 <= count <= 3
        for row, matrix in zip(sample, each, strict=True):
            assert np.array_equal(row, matrix[begin : begin + count].reshape(-1))
        assert group.nbytes == sum(matrix.nbytes for matrix in group.experts)


def test_a_file_that_became_shorter_is_a_sentence(mixtral_dir: Path, tmp_path: Path) -> None:
    place = shutil.copytree(mixtral_dir, tmp_path / "moe")
    group = open_checkpoint(place).groups()[-1]
    last = max(group.experts, key=lambda matrix: matrix.info.sources()[0].begin)
    tensor = last.info.sources()[0]
    os.truncate(tensor.file, tensor.begin)
    with raises_saying(CheckpointError, tensor.name, tensor.file.name):
        group.middle(32, 1 << 16)
