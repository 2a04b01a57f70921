"""Repair: what is small in a packed checkpoint is trained to say what the original says.

The package can be called as its function: `from ders_core import repair`. What needs torch modules
and transformers is in `ders_core.repair.repairer`, imported where it runs.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ders_core.later import names_later
from ders_core.repair.settings import DEFAULT_TRAIN, TRAINABLE, RepairSettings

if TYPE_CHECKING:
    from ders_core.repair.repairer import repair
    from ders_core.repair.result import RepairResult

__all__ = ["DEFAULT_TRAIN", "TRAINABLE", "RepairResult", "RepairSettings", "repair"]

__getattr__ = names_later(__name__, {".repairer": ("repair",), ".result": ("RepairResult",)})


class _CallablePackage(ModuleType):
    """A package named as the function that it offers, and called in its place."""

    def __call__(self, *inputs: Any, **options: Any) -> RepairResult:
        from ders_core.repair.repairer import repair

        return repair(*inputs, **options)


sys.modules[__name__].__class__ = _CallablePackage
