"""A directory appears complete or not at all. `files/output.py` adds a lock and continuing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ders_core.files.aside import sync_directory
from ders_core.files.output import check_room, made_parents, new_target
from ders_core.files.place_errors import writing
from ders_core.files.scratch import scratch_in

OLD = ".ders-old"
"""The name of a directory that is being replaced, until it is removed."""


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
