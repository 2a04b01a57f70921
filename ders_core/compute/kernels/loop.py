"""How a function becomes a compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def loop(function: Function) -> Function:
    """Compile at the first call of each signature. Numbers are those of the same operations in
    numpy: nothing is reordered or fused. Indices are not checked."""
    try:
        compiled: Function = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor a cache of the user can be written to
        compiled = njit(nogil=True, error_model="numpy")(function)
    return compiled
