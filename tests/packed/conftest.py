"""A recipe with every codec, ways to look at directories, and two checkpoints for patches."""

import shutil
from pathlib import Path

import pytest
from support.packed_checkpoints import all_tensors, mix, packed_dir, snapshot
from support.patched_checkpoints import other, packed

__all__ = ["all_tensors", "mix", "other", "packed", "packed_dir", "snapshot"]


@pytest.fixture
def damaged(packed_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed_dir, tmp_path / "damaged"))
