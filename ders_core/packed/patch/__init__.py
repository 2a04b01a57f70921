"""Patches: deltas that travel alone, applied to the base that they need, and rolled back."""

from ders_core.packed.patch.apply import Applied, apply_patch, keep_the_way_back
from ders_core.packed.patch.make import Made, make_patch, read_back
from ders_core.packed.patch.rollback import rollback

__all__ = [
    "Applied",
    "Made",
    "apply_patch",
    "keep_the_way_back",
    "make_patch",
    "read_back",
    "rollback",
]
