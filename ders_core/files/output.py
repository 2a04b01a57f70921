"""An output appears complete or not at all; an interrupted run can be continued."""

from __future__ import annotations

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
from ders_core.files.aside import ASIDE, locked_aside, sync_directory, sync_tree
from ders_core.files.flock import is_at
from ders_core.files.inputs import check_inputs, leave_out
from ders_core.files.json_object import read_json
from ders_core.files.missing import printable
from ders_core.files.output_lock import MARK, busy, is_written, output_lock, sweep_outputs
from ders_core.files.place_errors import system_error, write_error, writing
from ders_core.files.writer import write_json
from ders_core.units import bytes_text

STATE = ".ders-state.json"
"""Hidden, as no side file of a checkpoint is: so it cannot clash with one."""

GROUPS_FOLDER = ".ders-groups"
"""A directory for what tells how to continue; hidden too. It may be there or not."""

INPUT_ERRORS = (CheckpointError, CodecError, RecipeError, EvaluationError)
"""Without another cause, such as a network's: the work cannot be finished as it was asked for."""

WORK, REFUSED = "work", "refused"
"""Keys of the state: the description of the work, and whether it ended with an error."""

PARTIAL = ".partial"
"""Ends the name of an unfinished output."""

UNFINISHED = ".unfinished"
"""Ends the name of a file that is worth nothing by itself: others tell what in it is finished."""


def partial_path(out: Path) -> Path:
    """The directory of an unfinished output: a sibling, so on the same disk."""
    return out.with_name(out.name + PARTIAL)


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
        name = os.fsencode(partial_path(target).name) if target.name else b""
        os.fsencode(target)
    except (RuntimeError, ValueError) as error:
        raise OutputError(f"{out!r} cannot be written: {error}; give a full path") from error
    if "\0" in str(target):
        raise OutputError(f"{str(out)!r} cannot be written: no name holds a zero byte")
    with writing(target):
        if target.exists() or target.is_symlink():
            raise OutputError(f"{target} exists already; choose another name or remove it")
        if target.name in ("", ".."):
            raise OutputError(f"{target} ends in no name; give the path of something new")
        above = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise OutputError(f"{target} cannot be written: {above} is no directory")
        if not os.access(above, os.W_OK | os.X_OK):
            raise OutputError(f"{target} cannot be written: {_why_not(above)}")
        if len(name) > os.pathconf(above, "PC_NAME_MAX"):
            raise OutputError(f"{target} cannot be written: its name is too long")
        if not resume:
            _check_begun(target)
    return target


def sweep_if_exists(out: Path) -> bool:
    """Remove what dead processes left in the folder of an output that exists, such as the state of
    one that was killed right after the output got its name. Returns whether it, or anything else
    of its name, exists."""
    if not os.path.lexists(out):
        return False
    sweep_outputs(out.parent, PARTIAL, _forget)
    return True


def _why_not(folder: Path) -> str:
    """Why nothing can be written into a folder."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"the disk of {folder} is read-only"
    return f"{folder} may not be written to"


def _check_begun(target: Path) -> None:
    """Raise OutputError if the output is being written, or was begun and could be continued."""
    if is_written(target):
        raise busy(target)
    partial = partial_path(target)
    state = _state(partial)
    if state and not state.get(REFUSED) and _holds_work(partial):
        raise _unfinished(partial)


@contextmanager
def output_directory(
    out: str | Path, *, work: dict[str, Any] | None = None, resume: bool = False, needs: int = 1
) -> Iterator[Path]:
    """Yield a directory to write into; it becomes `out` when the block ends without an error.

    work: a description of the work as JSON. With it, an interrupted block leaves its directory
    behind, as does one that ends with an error after a part of the work is finished, and `resume`
    continues it if the description is the same. Any other such block leaves nothing. needs: bytes
    that will be written, compared with the free space first. Raises OutputError if `out` exists, is
    being written by another process, belongs to other work, the disk is full, or the system refuses
    a write; CheckpointError if it refuses the block to read another file.
    """
    target = new_target(out, resume=True)
    partial = partial_path(target)
    with writing(target):
        sweep_outputs(target.parent, PARTIAL, _forget)
        check_room(target.parent, needs - (bytes_below(partial) if resume else 0))
        with made_parents(target), output_lock(target) as lock, ExitStack() as stack:
            if target.exists() or target.is_symlink():
                raise OutputError(f"{target} exists already; choose another name or remove it")
            _prepare(partial, work, resume)
            stack.callback(os.close, begun := os.open(partial, os.O_RDONLY | os.O_DIRECTORY))
            if work is None:
                lock.mark(partial)
            leave_out(partial)
            try:
                yield partial
                check_inputs()
            except BaseException as error:
                kept = _leave(partial, work, error)
                cause = None if isinstance(error, DersError) else system_error(error)
                if cause is None:
                    raise
                then = "then continue it with --resume" if kept else "then run again"
                raise write_error(cause, target, then) from error
            _check_still_there(partial, begun, target)
            sync_tree(partial)
            if target.exists():
                raise OutputError(
                    f"{target} appeared while it was being written; choose another name"
                )
            (partial / MARK).unlink(missing_ok=True)
            os.rename(partial, target)
            sync_directory(target.parent)
            _forget(target)


def _forget(target: Path) -> None:
    """Remove what tells how to continue an output, which is finished and has its name."""
    shutil.rmtree(target / GROUPS_FOLDER, ignore_errors=True)
    (target / STATE).unlink(missing_ok=True)


def _leave(partial: Path, work: dict[str, Any] | None, error: BaseException) -> bool:
    """Leave an unfinished output after an error; returns whether it is kept, to be continued."""
    told = isinstance(error, DersError) or system_error(error) is not None
    stopped = isinstance(error, Cancelled) or not told
    with suppress(OSError):  # the error is what is told
        if work is None or not (stopped or _holds_work(partial)):
            shutil.rmtree(partial, ignore_errors=True)
        else:
            if isinstance(error, INPUT_ERRORS) and error.__cause__ is None:
                _note_refusal(partial, work)
            return True
    return False


def _check_still_there(partial: Path, begun: int, target: Path) -> None:
    """Raise OutputError if the directory was removed meanwhile, though a part of the work may have
    made it again: what was written before is missing. begun: the directory, open since then."""
    if is_at(begun, partial):
        return
    shutil.rmtree(partial, ignore_errors=True)
    raise OutputError(
        f"{target} cannot be written: something removed {partial.name} in the meantime; choose a "
        "place that stays, then run again"
    )


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
                f"{partial} was begun from another checkpoint or recipe, or in another format "
                "version; remove it first"
            )
        else:
            for remains in list(partial.rglob(ASIDE)):  # of a process that was killed
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
        path.name not in (STATE, MARK)
        and not path.match(ASIDE)
        and not path.name.endswith(UNFINISHED)
        for path in partial.rglob("*")
        if path.is_file()
    )


def _note_refusal(partial: Path, work: dict[str, Any]) -> None:
    """Note that the work ended with an error of its input: corrected work may take its place."""
    with suppress(OSError):
        write_json(partial / STATE, {WORK: work, REFUSED: True})


def _unfinished(partial: Path) -> OutputError:
    return OutputError(f"{partial} holds an unfinished run; continue it with --resume or remove it")


def check_room(directory: Path, needs: int) -> None:
    """Raise OutputError if the disk of a directory, which need not exist, has fewer free bytes."""
    free = free_bytes(directory)
    if needs > free:
        raise OutputError(
            f"{directory}: the output needs {bytes_text(needs)}, but only {bytes_text(free)} are "
            "free on that disk; free space or choose another place"
        )


def free_bytes(directory: Path) -> int:
    """Free bytes on the disk of a directory, which need not exist. Raises OSError."""
    there = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def bytes_below(directory: Path) -> int:
    """Bytes of the disk that the files below a directory take; holes take none."""
    sizes = (path.lstat() for path in directory.rglob("*") if path.is_file())
    return sum(min(facts.st_size, 512 * facts.st_blocks) for facts in sizes)


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
def new_file(path: Path, *, needs: int = 1) -> Iterator[Path]:
    """Yield a place next to `path` to write to; when the block ends, it becomes `path`.

    A block that ends with an error leaves nothing. needs: bytes that will be written at least.
    Raises OutputError, before the block where that can be, if `path` exists or cannot be written;
    CheckpointError if the system refuses the block to read another file.
    """
    path = new_target(path)
    with ExitStack() as stack:
        with writing(path):
            check_room(path.parent, needs)
            stack.enter_context(made_parents(path))
            aside = stack.enter_context(locked_aside(path))
        with writing(path):
            yield aside
            check_inputs()
            if os.path.lexists(path):
                raise OutputError(
                    f"{printable(path)} appeared while it was being written; choose another name"
                )
            stack.close()
            sync_directory(path.parent)
