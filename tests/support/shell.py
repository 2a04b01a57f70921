"""The `ders` command without a process of its own: what it prints, and its exit status.

Starting Python and importing torch takes several seconds, a hundred times what most commands take
on a small checkpoint. `tests/cli/test_process.py` holds that real processes behave alike.
"""

from __future__ import annotations

import io
import sys
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ders_core.cli.main import main


def ders(*words: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Run `ders` with these words as arguments, in the directory `cwd`.

    An error that the command lets through, which a user would see as a traceback, is raised.
    """
    arguments = ["ders", *map(str, words)]
    printed, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        chdir(cwd) if cwd else nullcontext(),
        redirect_stdout(printed),
        redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            main()
    status = int(left.value.code or 0)
    return CompletedProcess(arguments, status, printed.getvalue(), errors.getvalue())


def error_of(done: CompletedProcess[str]) -> str:
    """The one line of a command's error, which is the last of what it tells."""
    *before, line = done.stderr.splitlines()
    assert line.startswith("ders: ")
    assert not any(earlier.startswith("ders: ") for earlier in before)
    return line
