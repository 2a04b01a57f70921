"""A recipe with every codec, ways to look at directories, and two checkpoints for patches."""

from support.packed_checkpoints import all_tensors, mix, packed_dir, snapshot
from support.patched_checkpoints import other, packed

__all__ = ["all_tensors", "mix", "other", "packed", "packed_dir", "snapshot"]
