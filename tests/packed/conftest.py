"""A recipe with every codec, and ways to look at directories."""

from support.packed_checkpoints import all_tensors, mix, packed_dir, snapshot

__all__ = ["all_tensors", "mix", "packed_dir", "snapshot"]
