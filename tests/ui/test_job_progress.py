"""What the panel of a job tells while it runs."""

from __future__ import annotations

import pytest

from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.ui.job_progress import time_left


@pytest.mark.parametrize(("seconds", "told"), [(200.0, "about 3 min 20 s left"), (0.6, "")])
def test_at_a_steps_end_no_time_is_told(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, seconds: float, told: str
) -> None:
    """The last units may take longer than those before: 0 s would be wrong for minutes."""
    store = JobStore(workspace.store_path)
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    monkeypatch.setattr(Job, "seconds_left", seconds)
    assert time_left(store.get(number)) == ""  # it waits
    Claims(workspace.store_path, "me").claim()
    assert time_left(store.get(number)) == told
