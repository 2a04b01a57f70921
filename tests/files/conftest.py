"""Files written by hand, so that they can lie, copies that a test may change, a packed one."""

from support.damaged_copies import copy_of
from support.forged_files import forge
from support.packed_checkpoints import mix, packed_dir

__all__ = ["copy_of", "forge", "mix", "packed_dir"]
