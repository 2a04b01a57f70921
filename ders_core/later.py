"""Libraries that take long to import, imported when a name of theirs is first used.

`from ders_core.later import torch` costs nothing: importing torch itself takes seconds, for which
every command and page would wait. A module that is only reached where tensors are computed imports
torch plainly. In a module that also tells sizes, names or labels, nothing may be taken from a
later module while the file is imported: no constant, no decorator, no base class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["names_later", "np", "pa", "pd", "pq", "torch"]


def names_later(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are imported when they are first used.

    modules: module, from the package on if it begins with a dot -> its names, of which none is also
    a module's.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return find


if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
else:

    class _Later(ModuleType):
        """Stands for a module until one of its names is needed. Not in `sys.modules`, where other
        libraries look for the real one."""

        def __getattr__(self, name: str) -> Any:
            module = self.__dict__.get("imported")
            if module is None:  # asked for whole: another thread may be importing it just now
                self.__dict__["imported"] = module = import_module(self.__name__)
            value = getattr(module, name)
            self.__dict__[name] = (
                value  # found there from now on: this function takes a microsecond
            )
            return value

    np, pd, torch = _Later("numpy"), _Later("pandas"), _Later("torch")
    pa, pq = _Later("pyarrow"), _Later("pyarrow.parquet")
