"""How a function becomes a compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def loop(function: Function) -> Function:
    """Compile at the first call of each signature. Numbers are those of the same operations in
    numpy: nothing is reordered or fused. Indices are not checked."""
    try:
        compiled: Any = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor a cache of the user can be written to
        return part_apart(function)
    # numba compiles again where the loop's own file has changed; parts of it are in other files
    try:
        kept = compiled._cache._cache_file
        kept._source_stamp = (kept._source_stamp, _stamps())
    except AttributeError:  # a numba that keeps machine code in another way
        return part_apart(function)
    return compiled  # type: ignore[no-any-return]


def part(function: Function) -> Function:
    """A part of loops that works on arrays. It is copied into each of them: to hand over arrays
    takes longer than a short loop does."""
    copied: Function = njit(nogil=True, error_model="numpy", inline="always")(function)
    return copied


def part_apart(function: Function) -> Function:
    """A part of loops that works on single numbers, or so long on arrays that it may be called."""
    compiled: Function = njit(nogil=True, error_model="numpy")(function)
    return compiled


@cache
def _stamps() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file with loops or parts of them."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file.name, (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)
