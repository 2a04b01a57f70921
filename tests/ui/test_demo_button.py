"""*Try the demo*: it is unpacked, analysed and open after one click, whatever the worker does."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, words

import ders_core.analysis
import ders_core.demo.unpack
from ders_core.analysis import Analysis
from ders_core.compute.progress import Progress
from ders_core.demo.unpack import TRAINED
from ders_core.errors import CheckpointError
from ders_core.jobs import JobStore, Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.ui.demo import (
    DEMO_VARIABLE,
    expect_demo,
    is_expected,
    make_demo,
    make_unhurried,
    ready_demo,
)
from ders_core.ui.opened import RECENT, Open


def test_one_click_shows_how_alike_its_experts_are(app: AppTest, workspace: Workspace) -> None:
    app.run()
    app.button(key="demo").click().run()
    on(app, "redundancy")
    moe = workspace.demo / "moe"
    assert "share one start" in words(app)
    assert len(app.get("plotly_chart")) >= 4
    assert Open.load(workspace).checkpoint == str(moe)
    assert JobStore(workspace.store_path).list() == []
    checkpoint = open_checkpoint(moe)
    saved = Analysis.load(workspace.analysis_dir(checkpoint.identity))
    assert saved.is_of(checkpoint.store)
    assert saved.meta["spectra"] == "curve"  # as of the job that a page would file
    assert "8 experts × 4 layers, top-2." in words(on(app, "checkpoint"))


def test_it_is_offered_where_nothing_is_open(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.ui.frame.ready_demo", lambda workspace: mixtral_dir)
    app.run()
    on(app, "spectra").button(key="need_demo").click().run()
    assert Open.load(workspace).checkpoint == str(mixtral_dir)
    assert "No checkpoint" not in words(app)


def test_the_first_visitor_finds_it_open_if_the_server_was_started_so(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.ui.frame.ready_demo", lambda workspace: mixtral_dir)
    monkeypatch.setenv(DEMO_VARIABLE, "1")
    assert "4 experts × 2 layers, top-2." in words(app.run())
    assert DEMO_VARIABLE not in os.environ


def test_what_is_there_is_not_made_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ask at once; then it is there; then its analysis is damaged."""
    moe, opened = workspace.demo / "moe", list[Path]()
    threads = [
        threading.Thread(target=lambda: opened.append(ready_demo(workspace))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [moe, moe]

    def never(*_: object, **__: object) -> None:
        pytest.fail("it was made again")

    with monkeypatch.context() as patch:
        patch.setattr(ders_core.demo.unpack, "unpack_demo", never)
        patch.setattr(ders_core.analysis, "analyze", never)
        assert ready_demo(workspace) == moe
    checkpoint = open_checkpoint(moe)
    directory = workspace.analysis_dir(checkpoint.identity)
    before = Analysis.load(directory)
    (directory / "meta.json").write_text("{}")
    assert ready_demo(workspace) == moe
    assert Analysis.load(directory).to_json() == before.to_json()


def test_it_is_made_before_somebody_asks_for_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in a process beside; never where the app computes itself."""
    asked, done = list[object](), threading.Event()

    def computed(function: object, of: Workspace) -> None:
        asked.append((function, of))
        done.set()

    monkeypatch.setattr("ders_core.ui.demo.calculate", computed)
    monkeypatch.setattr("ders_core.ui.demo.warm", lambda: False)
    expect_demo(workspace)
    assert asked == []
    monkeypatch.setattr("ders_core.ui.demo.warm", lambda: True)
    expect_demo(workspace)
    expect_demo(workspace)
    assert done.wait(60)
    assert asked == [(make_demo, workspace)]


def test_it_is_made_before_the_server_starts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, mixtral_dir: Path
) -> None:
    """Where somebody may ask for it; who asks meanwhile waits, and a fault is told to them."""
    assert is_expected(workspace, {})
    Open(str(mixtral_dir)).save(workspace)
    assert not is_expected(workspace, {})
    assert is_expected(workspace, {DEMO_VARIABLE: "1"})
    begun, asked = threading.Event(), threading.Event()
    made, told = list[str](), list[str]()

    def make(of: Workspace, *, progress: Progress) -> None:
        made.append("begun")
        progress(1, 2, "unpacking")
        begun.set()
        asked.wait(0.2)  # nobody comes through
        made.append("ended")
        raise CheckpointError("the package is damaged")

    def ask() -> None:
        assert begun.wait(60)
        ready_demo(workspace)
        asked.set()

    def computed(function: object, of: Workspace) -> None:
        made.append("asked")

    monkeypatch.setattr("ders_core.ui.demo.make_demo", make)
    monkeypatch.setattr("ders_core.ui.demo.calculate", computed)
    asking = threading.Thread(target=ask)
    asking.start()
    make_unhurried(workspace, progress=lambda *step: told.append(step[2]))
    asking.join()
    assert made == ["begun", "ended", "asked"]
    assert told[-1] == "unpacking"  # one that works is not taken for one that hangs


def test_a_demo_that_cannot_be_unpacked_is_a_sentence(
    app: AppTest, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(TRAINED, tmp_path / "trained")
    (broken / "heldout.txt.gz").write_bytes(b"no gzip")
    monkeypatch.setattr(ders_core.demo.unpack, "TRAINED", broken)
    app.run()
    app.button(key="demo").click().run()
    assert "heldout.txt.gz" in app.error[0].value
    on(app, "redundancy").button(key="need_demo").click().run()
    assert "heldout.txt.gz" in app.error[0].value
    assert not workspace.demo.exists()


def test_the_newest_checkpoints_are_remembered(workspace: Workspace) -> None:
    state = Open()
    for number in range(RECENT + 2):
        state = state.with_checkpoint(f"/m{number}")
    state = state.with_checkpoint("/m5")
    state.save(workspace)
    assert Open.load(workspace) == state
    assert state.checkpoint == "/m5"
    assert state.recent[:3] == ("/m5", f"/m{RECENT + 1}", f"/m{RECENT}")
    assert len(state.recent) == RECENT
