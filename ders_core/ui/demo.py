"""The demo in a workspace, ready to be looked at: unpacked and analysed, in a few seconds.

No job does it: it would wait behind others.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from ders_core.compute.progress import Progress
from ders_core.demo.result import MOE
from ders_core.errors import DersError
from ders_core.jobs.workspace import Workspace
from ders_core.ui.calculator import calculate, warm

DEMO_VARIABLE = "DERS_OPEN_DEMO"
"""In the environment of a server: its first visitor finds the demo open."""

_ONE = threading.Lock()
"""Two people may ask for the demo at once."""

_EXPECTED: set[Path] = set()
"""Workspaces for which it was made ahead, or could not be."""


def ready_demo(workspace: Workspace) -> Path:
    """The demo's MoE, unpacked unless it is there, and analysed unless its analysis is there.

    Raises DersError if it cannot be written or read.
    """
    with _ONE:
        if not _is_analysed(workspace):
            calculate(make_demo, workspace)
    return workspace.demo / MOE


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
