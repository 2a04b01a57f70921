"""A directory appears complete or not at all. `files/output.py` adds a lock and continuing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ders_core.errors import OutputError
from ders_core.files.aside import sync_directory
from ders_core.files.output import check_room, made_parents, new_target
from ders_core.files.place_errors import writing
from ders_core.files.scratch import scratch_in, sweep_scratch

OLD = ".ders-old"
"""The name of a directory that is being replaced, until it is removed."""

FILLING = ".ders-filling."
"""Begins the name of the temporary directory inside a directory that is being filled."""


@contextmanager
def new_directory(path: Path, *, needs: int = 1) -> Iterator[Path]:
    """Yield a path, in a temporary directory next to `path`, at which the block makes a directory;
    when the block ends, it becomes the new directory `path`.

    The block may write more into the temporary directory. A block that ends with an error leaves
    nothing. needs: bytes that will be written at least. Raises OutputError if `path` exists or
    cannot be written, if possible before the block.
    """
    path = new_target(path)
    with ExitStack() as stack:
        with writing(path):
            check_room(path.parent, needs)
            stack.enter_context(made_parents(path))
            room = stack.enter_context(scratch_in(path.parent, f".{path.name}."))
            aside = room / path.name
        with writing(path):
            yield aside
            os.rename(aside, path)
            sync_directory(path.parent)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory; when the block ends, it takes the place of the directory `path`.

    A block that ends with an error leaves `path` as it was. Raises OutputError if it cannot be
    written.
    """
    with ExitStack() as stack:
        with writing(path):
            stack.enter_context(made_parents(path))
            room = stack.enter_context(scratch_in(path.parent, f".{path.name}."))
            aside = room / path.name
            aside.mkdir()
        with writing(path):
            yield aside
            old = room / OLD
            with suppress(FileNotFoundError):
                os.rename(path, old)
            try:
                os.rename(aside, path)
            except BaseException:
                with suppress(OSError):
                    os.rename(old, path)
                raise


@contextmanager
def filled_directory(path: Path, *, last: str) -> Iterator[Path]:
    """Yield a path at which the block makes a directory; when the block ends, what is in it moves
    into the directory `path`, which exists and is empty. `path` stays the same directory: links to
    it, its mode and processes that work in it keep it.

    The block's directory lies inside `path`, hidden: so they are on one disk, also where a disk is
    mounted at `path`. last: the file that moves last, without which readers see no output. A block
    that ends with an error leaves `path` empty. Raises OutputError if `path` is not empty, before
    or after the block, or cannot be written; then what others wrote there is left as it is.
    """
    with ExitStack() as stack:
        with writing(path):
            target = path.resolve()
        with writing(target):
            sweep_scratch(target, FILLING)
            if any(target.iterdir()):
                raise OutputError(
                    f"{path} exists already and is not empty; choose another name or empty it"
                )
            room = stack.enter_context(scratch_in(target, FILLING))
            aside = room / "files"
        with writing(target):
            yield aside
            _move_in(aside, target, room, last)
            sync_directory(target)


def _move_in(aside: Path, target: Path, room: Path, last: str) -> None:
    """Move all that is in `aside` to `target`, in which there is nothing but `room`."""
    moved: list[str] = []
    try:
        for name in sorted(os.listdir(aside), key=lambda name: (name == last, name)):
            others = {*os.listdir(target)} - {room.name, *moved}
            if others:
                raise OutputError(
                    f"{target / min(others)} appeared while the directory was being written; "
                    "choose an empty one"
                )
            moved.append(name)
            os.rename(aside / name, target / name)
    except BaseException:
        for name in moved:
            if not os.path.lexists(aside / name):
                with suppress(OSError):
                    os.rename(target / name, aside / name)
        raise
