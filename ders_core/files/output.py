"""An output appears complete or not at all; an interrupted run can be continued."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ders_core.errors import (
    Cancelled,
    CheckpointError,
    CodecError,
    DersError,
    EvaluationError,
    OutputError,
    RecipeError,
)
from ders_core.files.aside import ASIDE, sync_directory, sync_tree, written_aside
from ders_core.files.inputs import check_inputs, leave_out
from ders_core.files.json_object import read_json
from ders_core.files.writer import write_json

STATE = ".ders-state.json"
"""Hidden, as no side file of a checkpoint is: so it cannot clash with one."""

INPUT_ERRORS = (CheckpointError, CodecError, RecipeError, EvaluationError)
"""Without another cause, such as a network's: the work cannot be finished as it was asked for."""

WORK, REFUSED = "work", "refused"
"""Keys of the state: the description of the work, and whether it ended with an error."""

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


def new_target(out: str | Path, *, resume: bool = False) -> Path:
    """The path of an output that does not exist yet, with ~ expanded; looks before any work starts
    and leaves nothing. Folders above it that are missing will be made.

    resume: an unfinished run of it may be there. Raises OutputError if `out` is no name, exists, is
    below a file, cannot be written, or is an unfinished run that is not to be resumed.
    """
    if not str(out).strip():
        raise OutputError("the output has no name; give the path of something new")
    try:
        target = Path(out).expanduser()
    except RuntimeError as error:
        raise OutputError(f"{out} cannot be written: {error}; give a full path") from error
    with _explained(target):
        if target.exists() or target.is_symlink():
            raise OutputError(f"{target} exists already; choose another name or remove it")
        if target.name in ("", ".."):
            raise OutputError(f"{target} ends in no name; give the path of something new")
        above = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise OutputError(f"{target} cannot be written: {above} is no directory")
        if not os.access(above, os.W_OK | os.X_OK):
            raise OutputError(f"{target} cannot be written: {above} may not be written to")
        if len(os.fsencode(partial_path(target).name)) > os.pathconf(above, "PC_NAME_MAX"):
            raise OutputError(f"{target} cannot be written: its name is too long")
        if not resume:
            _check_begun(target)
    return target


def _check_begun(target: Path) -> None:
    """Raise OutputError if the output is being written, or was begun and could be continued."""
    with suppress(FileNotFoundError), open(_lock_of(target)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(target) from None
    partial = partial_path(target)
    state = _state(partial)
    if state and not state.get(REFUSED) and _holds_work(partial):
        raise _unfinished(partial)


@contextmanager
def output_directory(
    out: str | Path, *, work: dict[str, Any] | None = None, resume: bool = False, needs: int = 0
) -> Iterator[Path]:
    """Yield a directory to write into; it becomes `out` when the block ends without an error.

    work: a description of the work as JSON. With it, an interrupted block leaves its directory
    behind, and `resume` continues it if the description is the same. Without it, an interrupted
    block leaves nothing, and so does any block that refuses its work before it has finished a part
    of it. needs: bytes that will be written, compared with the free space first. Raises OutputError
    if `out` exists, is being written by another process, belongs to other work, or the disk is
    full.
    """
    new_target(out, resume=True)
    target = Path(out).expanduser()
    partial = partial_path(target)
    with _explained(target), made_parents(target), _lock(target):
        if target.exists() or target.is_symlink():
            raise OutputError(f"{target} exists already; choose another name or remove it")
        _check_room(target.parent, needs)
        _prepare(partial, work, resume)
        leave_out(partial)
        try:
            yield partial
            check_inputs()
        except BaseException as error:
            stopped = not isinstance(error, DersError) or isinstance(error, Cancelled)
            if work is None or not (stopped or _holds_work(partial)):
                shutil.rmtree(partial, ignore_errors=True)
            elif isinstance(error, INPUT_ERRORS) and error.__cause__ is None:
                _note_refusal(partial, work)
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
        state = _state(partial)
        if work is None or not _holds_work(partial):
            shutil.rmtree(partial)  # nobody could continue it
        elif not resume and not (state.get(REFUSED) and state.get(WORK) != work):
            raise _unfinished(partial)
        elif not resume:
            shutil.rmtree(partial)  # it could never have been finished as it was asked for
        elif state.get(WORK) != work:
            raise OutputError(
                f"{partial} was begun from another checkpoint or recipe; remove it first"
            )
        else:
            for remains in partial.glob(ASIDE):  # of a process that was killed
                remains.unlink()
            write_json(partial / STATE, {WORK: work})
            return
    partial.mkdir(parents=True)
    if work is not None:
        write_json(partial / STATE, {WORK: work})


def _state(partial: Path) -> dict[str, Any]:
    """What an unfinished output says of itself; empty if it says nothing that can be read."""
    try:
        return read_json(partial / STATE)
    except CheckpointError:
        return {}


def _holds_work(partial: Path) -> bool:
    """Whether anything was finished in an unfinished output, or somebody else's files are there."""
    return any(
        path.name != STATE and not path.match(ASIDE)
        for path in partial.rglob("*")
        if path.is_file()
    )


def _note_refusal(partial: Path, work: dict[str, Any]) -> None:
    """Note that the work ended with an error of its input: corrected work may take its place."""
    with suppress(OSError):
        write_json(partial / STATE, {WORK: work, REFUSED: True})


def _unfinished(partial: Path) -> OutputError:
    return OutputError(f"{partial} holds an unfinished run; continue it with --resume or remove it")


def _busy(target: Path) -> OutputError:
    return OutputError(f"{target} is being written by another process; wait for it or cancel it")


def _check_room(directory: Path, needs: int) -> None:
    free = shutil.disk_usage(directory).free
    if needs > free:
        raise OutputError(
            f"{directory}: the output needs {needs / 1e9:.3g} GB, but only {free / 1e9:.3g} "
            "GB are free on that disk; free space or choose another place"
        )


@contextmanager
def made_parents(target: Path) -> Iterator[None]:
    """Make the folders above an output; those that are still empty after an error are removed."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


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
    path = _lock_of(target)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_nlink == 0  # its holder has just finished
        except BlockingIOError:
            taken = True
        if taken:
            raise _busy(target)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a place next to `path` to write to; when the block ends, it becomes `path`.

    An interrupted block leaves nothing. Raises OutputError, before the block where that can be, if
    `path` exists or cannot be written.
    """
    new_target(path)
    with ExitStack() as stack:
        with refused_writes(path):
            stack.enter_context(made_parents(path))
            aside = stack.enter_context(written_aside(path))
            aside.touch()
        yield aside
        check_inputs()
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
