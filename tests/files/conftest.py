"""Files written by hand, so that they can lie, and copies that a test may change."""

from support.damaged_copies import copy_of
from support.forged_files import forge

__all__ = ["copy_of", "forge"]
