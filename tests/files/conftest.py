"""Files written by hand, so that they can lie."""

from forged_files import forge

__all__ = ["forge"]
