"""A recipe with every codec, ways to look at directories, checkpoints with given experts."""

from support.given_experts import checkpoint_of
from support.packed_checkpoints import all_tensors, mix, packed_dir, snapshot

__all__ = ["all_tensors", "checkpoint_of", "mix", "packed_dir", "snapshot"]
