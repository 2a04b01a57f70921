"""Other users of the machine read nothing of a workspace."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ders_core.files.private import private_directory
from ders_core.jobs import JobStore, Workspace, ensure_worker
from ders_core.jobs.claims import Claims


@pytest.fixture(autouse=True)
def _open_by_default() -> Iterator[None]:
    """The system of somebody whose files are open to all."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(workspace: Workspace) -> list[Path]:
    """The store, its companions while it is used, locks."""
    return [path for path in workspace.path.iterdir() if path.is_file()]


def test_a_new_workspace_is_closed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "a" / "w")
    store = JobStore(workspace.store_path)
    store.submit("analyze", {"checkpoint": "/m"}, "Look")
    assert mode(workspace.path) == 0o700
    assert workspace.store_path in files(workspace)
    assert {mode(path) for path in files(workspace)} == {0o600}


def test_an_open_workspace_is_closed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "w")
    JobStore(workspace.store_path).submit("analyze", {"checkpoint": "/m"}, "Look")
    log = workspace.worker_log
    log.parent.mkdir(mode=0o777)
    log.write_text("before\n")
    for path in (workspace.path, log.parent):
        path.chmod(0o755)
    for path in (*files(workspace), log):
        path.chmod(0o644)
    (workspace.path / "ders.sqlite-wal").touch(0o666)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: _Started())
    monkeypatch.setattr(Claims, "announce", lambda *_: None)
    with pytest.raises(Exception, match="worker"):
        ensure_worker(workspace)
    assert mode(workspace.path) == mode(log.parent) == 0o700
    assert {mode(path) for path in (*files(workspace), log)} == {0o600}
    assert log.read_text() == "before\n"


class _Started:
    """A process that was started."""

    pid = 0

    def poll(self) -> int:
        return 0


def test_places_that_users_share_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    home = tmp_path / "users" / "me"
    home.mkdir(parents=True, mode=0o755)
    monkeypatch.setenv("HOME", str(home))
    for path, before in ((shared, 0o1777), (home, 0o755), (home.parent, mode(home.parent))):
        private_directory(path)
        assert mode(path) == before
        JobStore(path / "ders.sqlite")
        assert mode(path / "ders.sqlite") == 0o600
