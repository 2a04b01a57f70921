"""The demo in a workspace, ready to be looked at: unpacked and analysed, in a few seconds.

No job does it: it would wait behind others.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ders_core.compute.progress import Progress
from ders_core.demo.result import MOE
from ders_core.errors import DersError
from ders_core.files.private import private_directory
from ders_core.jobs.schema import one_at_a_time
from ders_core.jobs.workspace import Workspace
from ders_core.ui.calculator import HandedOver, begun, calculate, take_over, warm
from ders_core.ui.opened import Open

DEMO_VARIABLE = "DERS_OPEN_DEMO"
"""In the environment of a server: its first visitor finds the demo open."""

UNHURRIED = 5
"""How nice to other processes the making of a demo is for which nobody waits yet."""

_EXPECTED: set[Path] = set()
"""Workspaces for which it was made ahead, or could not be."""


def ready_demo(workspace: Workspace) -> Path:
    """The demo's MoE, unpacked unless it is there, and analysed unless its analysis is there.

    Raises DersError if it cannot be written or read.
    """
    with _made_by_one(workspace):
        if not _is_analysed(workspace):
            calculate(make_demo, workspace)
    return workspace.demo / MOE


def is_expected(workspace: Workspace, environment: Mapping[str, str]) -> bool:
    """Whether the first visitor of a server in this environment is likely to ask for the demo, and
    it is not there."""
    asked = DEMO_VARIABLE in environment or Open.load(workspace).checkpoint is None
    return asked and not (workspace.demo / MOE).exists()


def begun_demo(
    workspace: Workspace, directory: Path, environment: Mapping[str, str]
) -> AbstractContextManager[HandedOver]:
    """Begin to make the demo in a process beside the server that the block starts, and that calls
    `take_over_demo`. directory, environment: the server's."""
    return begun(make_unhurried, workspace, directory=directory, environment=environment)


def take_over_demo(workspace: Workspace) -> None:
    """Of the process that started this server, if it began to make the demo."""
    if take_over():
        _EXPECTED.add(workspace.path)


def expect_demo(workspace: Workspace) -> None:
    """Make the demo in a process beside, once for a workspace, since somebody may ask for it next:
    `ready_demo` then waits for what is left to do. If it cannot be made, `ready_demo` says why."""
    if workspace.path in _EXPECTED or (workspace.demo / MOE).exists() or not warm():
        return
    _EXPECTED.add(workspace.path)
    threading.Thread(target=_make_ahead, args=(workspace,), daemon=True).start()


def _make_ahead(workspace: Workspace) -> None:
    with suppress(DersError):
        ready_demo(workspace)


def make_unhurried(workspace: Workspace, *, progress: Progress) -> None:
    """Make the demo with what other processes leave of the processors, while `ready_demo` waits. If
    it cannot be made, that says why."""

    def make() -> None:
        if sys.platform == "linux":  # of this thread and those that it starts, for good
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), UNHURRIED)
        # progress raises OSError where the server has ended
        with suppress(DersError, OSError), _made_by_one(workspace):
            if not _is_analysed(workspace):
                make_demo(workspace, progress=progress)

    progress(0, 0, "making the demo")
    maker = threading.Thread(target=make)
    maker.start()
    maker.join()


@contextmanager
def _made_by_one(workspace: Workspace) -> Iterator[None]:
    """Let one thread of one process at a time make it."""
    refusal = "the demo cannot be made"
    try:
        private_directory(workspace.path)
    except OSError as error:
        raise DersError(f"{refusal}: {workspace.path}: {error.strerror}") from error
    with one_at_a_time(workspace.path / ".ready-demo.lock", refusal):
        yield


def make_demo(workspace: Workspace, *, progress: Progress) -> None:
    """Unpack what is not there, and analyse it. Raises DersError."""
    from ders_core.analysis import analyze
    from ders_core.demo.unpack import unpack_demo
    from ders_core.packed.open import open_checkpoint

    moe = workspace.demo / MOE
    if not moe.exists():
        unpack_demo(workspace.demo, progress=progress)
    checkpoint = open_checkpoint(moe)
    analyze(checkpoint, progress=progress).save(workspace.analysis_dir(checkpoint.identity))


def _is_analysed(workspace: Workspace) -> bool:
    """Whether the demo and its analysis are there; False if either is damaged: it is made again."""
    from ders_core.analysis import Analysis
    from ders_core.packed.open import open_checkpoint

    moe = workspace.demo / MOE
    if not moe.exists():
        return False
    checkpoint = open_checkpoint(moe)
    try:
        return Analysis.load(workspace.analysis_dir(checkpoint.identity)).is_of(checkpoint.store)
    except DersError:
        return False
