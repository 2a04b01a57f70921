"""What dead processes left behind is removed."""

from __future__ import annotations

from ders_core.files.aside import sweep_asides
from ders_core.files.scratch import sweep_scratch
from ders_core.jobs.workspace import Workspace


def sweep(workspace: Workspace) -> None:
    """Remove what dead processes left in TMPDIR and in the workspace."""
    sweep_scratch()
    sweep_scratch(workspace.analyses, ".")
    for folder in (workspace.path, workspace.recipes):
        sweep_asides(folder)
