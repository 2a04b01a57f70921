"""The files that a piece of work reads must stay as they were when it opened them.

A result of two versions of a file looks like any other one. So whatever opens a file holds it here,
by its stamp, for the work that goes on in its thread (`unchanged_inputs`); before an output gets
its name, and when the work ends, all stamps are compared. Tasks in other processes get the stamps
along (`held_files`, `same_inputs`), so that they read the version that was opened first.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ders_core.files.address import is_remote
from ders_core.files.stamp import Stamp, check_same, meanwhile, stamp


@dataclass(frozen=True)
class Held:
    """The local files that a piece of work has opened so far, for its tasks.

    stamps: full path -> the stamp of the file when it was opened first. host: where they were
    taken; another machine may number the same files differently, so it compares them with itself.
    """

    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    host: str = ""


class _Inputs:
    """The files of one piece of work."""

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[Path, Stamp]] = {}
        self._outputs: list[str] = []
        self._checked = True

    def hold(self, path: Path, now: Stamp) -> None:
        key = str(path) if is_remote(path) else os.path.abspath(path)
        if any(key.startswith(output) for output in self._outputs):
            return
        first = self._stamps.setdefault(key, (path, now))[1]
        self._checked = False
        if not now.is_same_content(first):
            raise meanwhile(path, "written")

    def leave_out(self, directory: Path) -> None:
        self._outputs.append(os.path.join(os.path.abspath(directory), ""))

    def local(self) -> dict[str, Stamp]:
        return {key: first for key, (path, first) in self._stamps.items() if not is_remote(path)}

    def check_local(self) -> None:
        for path, first in [*self._stamps.values()]:
            if not is_remote(path):
                check_same(path, first)

    def check(self) -> None:
        for path, first in [*self._stamps.values()]:
            check_same(path, first)
        self._checked = True

    def finish(self) -> None:
        """Compare once more, unless nothing was opened since an output was finished."""
        if not self._checked:
            self.check()


_work: ContextVar[_Inputs | None] = ContextVar("inputs", default=None)


@contextmanager
def unchanged_inputs() -> Iterator[None]:
    """A piece of work, as a block or a decorator: what is opened in it is held until its end.

    Raises CheckpointError at its end, or in `check_inputs`, if a file was written, replaced or
    removed since; earlier, if a file is opened again and is another one. A block within another
    one belongs to that work; at its end it asks no server.
    """
    outer = _work.get()
    inputs = _Inputs() if outer is None else outer
    token = _work.set(inputs)
    try:
        yield
    finally:
        _work.reset(token)
    if outer is None:
        inputs.finish()
    else:
        inputs.check_local()


@contextmanager
def same_inputs(held: Held) -> Iterator[None]:
    """A task of a piece of work, perhaps in another process. held: `held_files` of the work.

    Raises CheckpointError if the task opens another version of a file, or if one of the local files
    was written until the block's end: so what it read in several passes is one content.
    """
    outer = _work.get()
    inputs = _Inputs() if outer is None else outer
    if held.host == platform.node():
        for name, first in held.stamps.items():
            inputs.hold(Path(name), first)
    token = _work.set(inputs)
    try:
        yield
    finally:
        _work.reset(token)
    inputs.check_local()


def hold(directory: Path, stamps: Mapping[str, Stamp]) -> None:
    """Hold files of a directory, by their names, with the stamps that they had when they were
    opened. Does nothing outside `unchanged_inputs`. Raises CheckpointError if one is another file
    than the work opened before."""
    inputs = _work.get()
    if inputs is not None:
        for name, first in stamps.items():
            inputs.hold(directory / name, first)


def hold_files(paths: Iterable[Path]) -> None:
    """Hold local files that are about to be read, as `hold`. What is no regular file, such as a
    pipe, is not held."""
    inputs = _work.get()
    if inputs is not None:
        for path in paths:
            if not is_remote(path) and path.is_file():
                inputs.hold(path, stamp(path))


def held_files() -> Held:
    """What the work holds now; nothing outside `unchanged_inputs`."""
    inputs = _work.get()
    return Held() if inputs is None else Held(inputs.local(), platform.node())


def leave_out(directory: Path) -> None:
    """Do not hold what lies in a directory: the work writes it itself."""
    inputs = _work.get()
    if inputs is not None:
        inputs.leave_out(directory)


def check_inputs() -> None:
    """Compare every file that the work has opened, before its output gets its name. Raises
    CheckpointError."""
    inputs = _work.get()
    if inputs is not None:
        inputs.check()
