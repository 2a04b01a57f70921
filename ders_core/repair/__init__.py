"""Repair: what is small in a packed checkpoint is trained to say what the original says.

The package can be called as its function: `from ders_core import repair`.
"""

import sys
from types import ModuleType

from ders_core.repair.repairer import repair
from ders_core.repair.result import RepairResult
from ders_core.repair.settings import DEFAULT_TRAIN, TRAINABLE, RepairSettings

__all__ = ["DEFAULT_TRAIN", "TRAINABLE", "RepairResult", "RepairSettings", "repair"]


class _CallablePackage(ModuleType):
    """A package named as the function that it offers, and called in its place."""

    __call__ = staticmethod(repair)


sys.modules[__name__].__class__ = _CallablePackage
