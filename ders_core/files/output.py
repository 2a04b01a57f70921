"""An output appears complete or not at all; an interrupted run can be continued."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError, OutputError
from ders_core.files.aside import ASIDE, sync_directory, sync_tree, written_aside
from ders_core.files.json_object import read_json
from ders_core.files.writer import write_json

STATE = ".ders-state.json"
"""Hidden, as no side file of a checkpoint is: so it cannot clash with one."""

REFUSALS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
"""Errors of a place that cannot be written, however much space is free."""


def partial_path(out: Path) -> Path:
    """The directory of an unfinished output: a sibling, so on the same disk."""
    return out.with_name(out.name + ".partial")


@contextmanager
def output_directory(
    out: str | Path, *, work: dict[str, Any] | None = None, resume: bool = False, needs: int = 0
) -> Iterator[Path]:
    """Yield a directory to write into; it becomes `out` when the block ends without an error.

    work: a description of the work as JSON. With it, an interrupted block leaves its directory
    behind, and `resume` continues it if the description is the same. Without it, an interrupted
    block leaves nothing. needs: bytes that will be written, compared with the free space first.
    Raises OutputError if `out` exists, is being written by another process, belongs to other work,
    or the disk is full.
    """
    target = Path(out).expanduser()
    partial = partial_path(target)
    with _explained(target), _lock(target):
        if target.exists() or target.is_symlink():
            raise OutputError(f"{target} exists already; choose another name or remove it")
        _prepare(partial, work, resume)
        try:
            _check_room(partial, needs)
            yield partial
        except BaseException:
            if work is None:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_tree(partial)
        if target.exists():
            raise OutputError(f"{target} appeared while it was being written; choose another name")
        (partial / STATE).unlink(missing_ok=True)
        os.rename(partial, target)
        sync_directory(target.parent)


def _prepare(partial: Path, work: dict[str, Any] | None, resume: bool) -> None:
    """Make the directory, or continue the one that is there."""
    if partial.exists():
        if work is None or not set(partial.iterdir()) - set(partial.glob(ASIDE)):
            shutil.rmtree(partial)  # nobody could continue it
        elif not resume:
            raise OutputError(
                f"{partial} holds an unfinished run; continue it with --resume or remove it"
            )
        else:
            try:
                same = read_json(partial / STATE) == work
            except CheckpointError:
                same = False
            if not same:
                raise OutputError(
                    f"{partial} was begun from another checkpoint or recipe; remove it first"
                )
            for remains in partial.glob(ASIDE):  # of a process that was killed
                remains.unlink()
            return
    partial.mkdir(parents=True)
    if work is not None:
        write_json(partial / STATE, work)


def _check_room(partial: Path, needs: int) -> None:
    free = shutil.disk_usage(partial).free
    if needs > free:
        raise OutputError(
            f"{partial.parent}: the output needs {needs / 1e9:.3g} GB, but only {free / 1e9:.3g} "
            "GB are free on that disk; free space or choose another place"
        )


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn errors of a full disk and of a forbidden place into an OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"the disk of {target} is full; free space, then run again"
            ) from error
        if error.errno in REFUSALS:
            raise OutputError(f"{target} cannot be written: {error.strerror}") from error
        raise


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold an exclusive lock next to the output; the system drops it if the process dies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_nlink == 0  # its holder has just finished
        except BlockingIOError:
            taken = True
        if taken:
            raise OutputError(
                f"{target} is being written by another process; wait for it or cancel it"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a place next to `path` to write to; when the block ends, it becomes `path`.

    An interrupted block leaves nothing. Raises OutputError, before the block where that can be, if
    `path` exists or cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} exists already; choose another name or remove it")
    with ExitStack() as stack:
        with refused_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = stack.enter_context(written_aside(path))
            aside.touch()
        yield aside
        with refused_writes(path):
            stack.close()
            sync_directory(path.parent)


@contextmanager
def refused_writes(path: Path) -> Iterator[None]:
    """Turn an OSError about a file that cannot be written into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
