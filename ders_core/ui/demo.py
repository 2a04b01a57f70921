"""The demo in a workspace, ready to be looked at: unpacked and analysed, in a second or two.

No job does it: it would wait behind others.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from ders_core.errors import DersError
from ders_core.jobs.workspace import Workspace

DEMO_VARIABLE = "DERS_OPEN_DEMO"
"""In the environment of a server: its first visitor finds the demo open."""

_ONE = threading.Lock()
"""Two people may ask for the demo at once."""


def ready_demo(workspace: Workspace) -> Path:
    """The demo's MoE, unpacked unless it is there, and analysed unless its analysis is there.

    Raises DersError if it cannot be written or read.
    """
    from ders_core.analysis import Analysis, analyze
    from ders_core.demo.result import MOE
    from ders_core.demo.unpack import unpack_demo
    from ders_core.packed.open import open_checkpoint

    moe = workspace.demo / MOE
    with _ONE:
        if not moe.exists():
            unpack_demo(workspace.demo)
        checkpoint = open_checkpoint(moe)
        directory = workspace.analysis_dir(checkpoint.identity)
        with suppress(DersError):  # there is none, or it is damaged: it is made again
            if Analysis.load(directory).is_of(checkpoint.store):
                return moe
        analyze(checkpoint).save(directory)
    return moe
