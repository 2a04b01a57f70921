"""A choice of a group's rows, against slices of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.messages import raises_saying

from ders_core.packed.open import open_checkpoint

PIECES = [slice(3, 7), slice(7, 8), slice(20, 33)]


@pytest.mark.parametrize("model", ["mixtral_dir", "qwen2_moe_dir"])
def test_rows_are_those_of_the_group(model: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(model)
    for group in open_checkpoint(directory).groups():
        whole, some = group.read(), group.of_rows(PIECES)
        wanted = torch.cat([whole[:, piece] for piece in PIECES], 1)
        assert some.shape == tuple(wanted.shape)
        assert some.dtype == group.dtype
        assert torch.equal(some.read(), wanted)
        for rows in (slice(0, 2), slice(3, 9), slice(5, None), slice(9, 4)):
            assert torch.equal(some.read(1, rows), wanted[1, rows])
        into = torch.empty_like(wanted[:, 2:6])
        some.read_into(into, slice(2, 6))
        assert torch.equal(into, wanted[:, 2:6])


def test_a_damaged_file_is_refused_as_before(mixtral_dir: Path, tmp_path: Path) -> None:
    from ders_core.errors import CheckpointError

    for file in mixtral_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    group = open_checkpoint(tmp_path).group(1, "down").of_rows(PIECES)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    with raises_saying(CheckpointError, "model.safetensors"):
        group.read()
