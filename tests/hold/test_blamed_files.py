"""Errors of the system while an output is written: each is one sentence about the file that is at
fault, the output or what was read for it."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying
from support.patched_checkpoints import packed  # noqa: F401 (a fixture)
from support.shell import ders, error_of

from ders_core.errors import CheckpointError, OutputError
from ders_core.files import address
from ders_core.files.output import output_directory
from ders_core.files.place_errors import system_error, write_error


class Failing(io.RawIOBase):
    """A file that opens and cannot be read, as on a disk that fails: the error names no file."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("opens", [False, True])
def test_an_unreadable_side_file_is_not_blamed_on_the_output(
    opens: bool, packed_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By no right to read it, or by its disk."""
    (packed_copy / "notes.txt").write_text("x")

    def refuse(file: Any, *words: Any, **options: Any) -> Any:
        if Path(file).name != "notes.txt" or "w" in words[0]:
            return open(file, *words, **options)
        if opens:
            return Failing()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(address, "open", refuse, raising=False)
    for number, verb in enumerate((("synthesize",), ("export",), ("compress",))):
        out = tmp_path / str(number)
        recipe = ("--recipe", "quantized-2bit", "--workers", 1) if verb[0] == "compress" else ()
        line = error_of(ders(*verb, packed_copy, out, *recipe))
        assert str(packed_copy / "notes.txt") in line
        assert "cannot be read" in line
        assert str(out) not in line
        assert not out.exists()


@pytest.fixture
def packed_copy(packed: Path, tmp_path: Path) -> Path:  # noqa: F811
    return shutil.copytree(packed, tmp_path / "source")


NAMES = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EACCES: "denied",
    errno.EIO: "output error",
    errno.EMFILE: "ulimit",
    errno.ENAMETOOLONG: "too long",
    errno.EFBIG: "too large",
    errno.ENOMEM: "not enough memory",
}


@pytest.mark.parametrize("number", NAMES)
def test_every_error_of_a_write_is_a_sentence_about_the_output(number: int, tmp_path: Path) -> None:
    for failing in (OSError(number, os.strerror(number)), OSError(number, "x", "y", None, "z")):
        if failing.filename is not None:
            failing = OSError(
                number,
                os.strerror(number),
                str(tmp_path / "in"),
                None,
                str(tmp_path / "out.partial"),
            )

        def write(failing: OSError = failing) -> None:
            with output_directory(tmp_path / "out"):
                raise failing

        with raises_saying(OutputError, tmp_path / "out", NAMES[number]):
            write()
        assert list(tmp_path.iterdir()) == []


def test_a_removed_place_is_told_as_that(tmp_path: Path) -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "out.partial" / "a"))
    error = write_error(gone, tmp_path / "out")
    assert isinstance(error, OutputError)
    assert "removed" in str(error)
    elsewhere = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "input" / "a"))
    error = write_error(elsewhere, tmp_path / "out")
    assert isinstance(error, CheckpointError)
    assert str(tmp_path / "input" / "a") in str(error)


def test_errors_of_libraries_are_understood() -> None:
    told = system_error(Exception("No space left on device (os error 28)"))
    assert told is not None
    assert told.errno == errno.ENOSPC
    assert system_error(Exception("os error")) is None
    for number in (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT):
        assert system_error(OSError(number, os.strerror(number))) is None
