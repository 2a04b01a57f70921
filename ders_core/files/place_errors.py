"""Errors of the system about files, as one sentence that names the file at fault."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ders_core.errors import CheckpointError, DersError, OutputError
from ders_core.files.missing import printable

FULL = {
    errno.ENOSPC: "the disk of {} is full",
    errno.EDQUOT: "the quota on the disk of {} is used up",
}
TOO_MANY = (errno.EMFILE, errno.ENFILE)
GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
ELSEWHERE = (ConnectionError, TimeoutError, InterruptedError, ChildProcessError, BlockingIOError)
"""Errors that are about no file: of a network, or of a reader of the output that has left."""

_FOREIGN = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust (safetensors, tokenizers) tell the system's number in their own errors."""


def system_error(error: BaseException) -> OSError | None:
    """The system's error that an exception is or tells of; None if it is about no file."""
    if isinstance(error, OSError) and error.errno is not None:
        return None if isinstance(error, ELSEWHERE) else error
    number = _FOREIGN.search(str(error))
    if number is None:
        return None
    return OSError(int(number[1]), os.strerror(int(number[1])))


def write_error(error: OSError, place: Path, then: str = "then run again") -> DersError:
    """An error that ended the writing of `place`: an OutputError about it, or a CheckpointError
    about the other file that the error names, which was to be read.

    then: what to do after the cause is mended.
    """
    culprit = _culprit(error, place)
    where = printable(culprit or place)
    number, reason = error.errno, error.strerror or str(error)
    if number in FULL:
        return OutputError(f"{FULL[number].format(where)}; free space, {then}")
    if number in TOO_MANY:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return OutputError(
            f"{printable(place)} cannot be written: too many files are open (the limit is "
            f"{limit}); raise it with `ulimit -n`, {then}"
        )
    if number == errno.ENOMEM:
        return OutputError(
            f"{printable(place)} cannot be written: there is not enough memory; use fewer "
            f"workers, {then}"
        )
    if culprit is not None:
        return CheckpointError(f"{where} cannot be read: {reason}")
    if number in GONE and error.filename is not None and not os.path.lexists(error.filename):
        return OutputError(
            f"{where} cannot be written: something removed it, or the folder above it, in the "
            f"meantime ({reason}); choose a place that stays, {then}"
        )
    if number == errno.EIO:
        return OutputError(
            f"{where} cannot be written: its disk fails ({reason}); choose another place"
        )
    return OutputError(f"{where} cannot be written: {reason}")


@contextmanager
def writing(place: Path, then: str = "then run again") -> Iterator[None]:
    """Turn the system's errors of the block, which writes `place`, into those of `write_error`."""
    try:
        yield
    except DersError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        raise write_error(cause, place, then) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's errors of the block, which reads `path` and writes nothing, into a
    CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{printable(path)} cannot be read: {error.strerror or error}"
        ) from error


def _culprit(error: OSError, place: Path) -> str | None:
    """The file that the error names, if it is not what is written at `place`: `place` itself, what
    is below it, its unfinished forms beside it, and the folders above it."""
    name = error.filename2 if error.filename2 is not None else error.filename
    if not isinstance(name, str | bytes):
        return None
    file = os.path.abspath(os.fsdecode(name))
    target = os.path.abspath(place)
    folder, last = os.path.split(target)
    above = f"{target}{os.sep}".startswith(file if file.endswith(os.sep) else f"{file}{os.sep}")
    first = os.path.relpath(file, folder).split(os.sep)[0]
    beside, own = first.lstrip("."), last.lstrip(".")  # hidden, and what is hidden of that
    ours = first == last or beside.startswith(f"{own}.")
    return None if above or ours else os.fsdecode(name)
