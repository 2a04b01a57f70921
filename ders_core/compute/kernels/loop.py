"""How a function becomes a compiled loop."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

IMPORTED = re.compile(r"compute\.kernels(?:\.(\w+)| import (?:([\w, ]+)|\(([\w,\s]+)\)))")
"""Modules of this package, where another one imports them."""

SETTLED = 3600
"""Seconds after which a process has surely named what it wrote."""

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
        kept._source_stamp = stamps(Path(function.__code__.co_filename))
        # of two processes that compile at once, neither may write under the other's name
        kept._data_name_pattern = kept._data_name_pattern.replace("{", f"{os.urandom(8).hex()}.{{")
        compiled._cache.save_overload = _then_swept(compiled._cache.save_overload, kept)
    except AttributeError:  # a numba that keeps machine code in another way
        return part_apart(function)
    return compiled  # type: ignore[no-any-return]


def _then_swept(save: Callable[..., None], kept: Any) -> Callable[..., None]:
    """`save`, and then remove the machine code of the same loop that nothing names any more, but
    for what another process may be about to name. kept: numba's files of the loop."""

    def saved(*given: Any) -> None:
        save(*given)
        named, long_ago = set(kept._load_index().values()), time.time() - SETTLED
        for file in Path(kept._cache_path).glob(
            f"{glob.escape(Path(kept._index_name).stem)}.*.nbc"
        ):
            with suppress(OSError):  # another process was quicker, or may and this one may not
                if file.name not in named and file.stat().st_mtime < long_ago:
                    file.unlink()

    return saved


def part(function: Function) -> Function:
    """A part of loops that works on arrays. It is copied into each of them: to hand over arrays
    takes longer than a short loop does."""
    copied: Function = njit(nogil=True, error_model="numpy", inline="always")(function)
    return copied


def part_apart(function: Function) -> Function:
    """A part of loops that works on single numbers, or so long on arrays that it may be called.

    Machine code is kept in files, where a part has a name and a number that counts what a process
    compiled: functions of one name that close over different values would be taken for each other.
    Raises TypeError for one that closes over a value.
    """
    if function.__closure__:
        raise TypeError(f"{function.__qualname__} closes over a value: make it an argument")
    compiled: Function = njit(nogil=True, error_model="numpy")(function)
    return compiled


def stamps(file: Path) -> tuple[tuple[str, str], ...]:
    """Name and SHA-256 of a file with loops, and of every file whose parts are in them. They are
    the same in every copy of the package, whenever it was made."""
    names, new = {file.stem}, {file.stem}
    while new:
        new = {imported for name in new for imported in _read(file.parent, name)[1]} - names
        names |= new
    return tuple((name, _read(file.parent, name)[0]) for name in sorted(names))


@cache
def _read(folder: Path, name: str) -> tuple[str, frozenset[str]]:
    """SHA-256 of a file of the folder, and names of files there that it imports."""
    text = (folder / f"{name}.py").read_text(encoding="utf-8")
    words = " ".join(" ".join(groups) for groups in IMPORTED.findall(text)).replace(",", " ")
    files = {word if (folder / f"{word}.py").exists() else "__init__" for word in words.split()}
    return sha256(text.encode()).hexdigest(), frozenset(files)
