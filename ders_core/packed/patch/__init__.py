"""Patches: deltas that travel alone, are applied to the base that they need, and rolled back."""

from ders_core.packed.patch.apply import AppliedPatch, apply_patch
from ders_core.packed.patch.make import (
    PatchSizes,
    delta_tensors,
    least_bytes,
    make_patch,
    patch_problems,
)
from ders_core.packed.patch.rollback_files import rollback, write_rollback

__all__ = [
    "AppliedPatch",
    "PatchSizes",
    "apply_patch",
    "delta_tensors",
    "least_bytes",
    "make_patch",
    "patch_problems",
    "rollback",
    "write_rollback",
]
