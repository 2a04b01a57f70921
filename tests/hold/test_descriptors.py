"""Browsers that come and go leave nothing open in the studio's server."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from streamlit.testing.v1 import AppTest
from support.large_workspaces import (
    fill_with_runs,
)
from support.studio_pages import on, opened
from support.studio_process import free_port, processes_of, running_studio
from support.visitors import Visitor

from ders_core.jobs import Workspace

ROOT = Path(__file__).parents[2]
PAGES = ("checkpoint", "redundancy", "spectra", "recipe", "runs", "export", "upcycle")


def descriptors() -> Counter[str]:
    """How many of each this process holds open: files by their paths, sockets and pipes."""
    gc.collect()  # event loops of tests before this one are closed when they are collected
    names: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            names[re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/self/fd/{entry}"))] += 1
    return names


def test_loads_leave_nothing_open(
    app: AppTest, workspace: Workspace, moe: Path, rounds: Callable[[int, int], int]
) -> None:
    fill_with_runs(workspace.store_path, 40, failed=4)
    opened(app, moe)
    for page in PAGES:
        on(app, page)
    before = descriptors()
    for number in range(rounds(4, 200)):
        fresh = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
        on(fresh, PAGES[number % len(PAGES)])
    assert descriptors() - before == Counter()


SCRIPT = """
import streamlit as st
from ders_core.ui.left_sessions import shut_down_left
shut_down_left()
st.dataframe({"numbers": range(1000)})
st.session_state["draws"] = st.session_state.get("draws", 0) + 1
st.markdown(f"drawn {st.session_state['draws']}")
"""
QUICK = {"STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL": "2"}
LONG_KEPT = {"STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL": "600"}
"""Settings: a session is kept for 2 seconds, and longer than any test takes."""


def open_in(server: psutil.Process, expected: int | None = None, patience: float = 3) -> int:
    """How many files a server holds, when those who left are forgotten: the fewest of some seconds;
    if a number is expected, as soon as there are no more."""
    fewest, end = server.num_fds(), time.monotonic() + (patience if expected is None else 60)
    while time.monotonic() < end and (expected is None or fewest > expected):
        time.sleep(0.1)
        fewest = min(fewest, server.num_fds())
    return fewest


@contextmanager
def small_server(
    directory: Path, settings: Mapping[str, str] = QUICK
) -> Iterator[tuple[str, psutil.Process]]:
    """A Streamlit server of a page that needs nothing but `shut_down_left`; its address."""
    script, log = directory / "page.py", directory / "server.log"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless=true"]
    command += ["--server.address=127.0.0.1", f"--server.port={free_port()}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), **settings}
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output
        ) as server,
    ):
        try:
            end = time.monotonic() + 120
            while not (found := re.search(r"http://127\S+", log.read_text(errors="replace"))):
                assert server.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < end
                time.sleep(0.1)
            yield found[0], psutil.Process(server.pid)
        finally:
            server.terminate()


def test_visitors_leave_nothing_open_in_a_server(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    with small_server(tmp_path) as (address, server):
        visitor = Visitor(address)
        assert visitor.look() > 2
        before = open_in(server)
        for _ in range(rounds(12, 1000)):
            visitor.look()
        assert open_in(server, before) <= before


def test_sessions_that_are_kept_hold_nothing_open(tmp_path: Path) -> None:
    """Those of browsers that left and may come back; then they find what they left."""
    with small_server(tmp_path, LONG_KEPT) as (address, server):
        visitor = Visitor(address)
        visitor.look()
        before = open_in(server, patience=1)  # nobody is forgotten
        others = [Visitor(address) for _ in range(8)]
        for other in others:
            other.look()
        assert open_in(server, before) <= before
        for other in others:
            other.look(back=True)
            assert other.texts == ["drawn 2"]
        assert open_in(server, before) <= before
        assert "event loop" not in (tmp_path / "server.log").read_text(errors="replace")


def test_visitors_leave_nothing_open_in_the_studio(
    tmp_path: Path, moe: Path, rounds: Callable[[int, int], int]
) -> None:
    visits = rounds(0, 1000)
    if not visits:
        pytest.skip("long: a thousand visits of the studio itself")
    fill_with_runs(tmp_path / "workspace" / "ders.sqlite", 200, failed=20)
    settings = QUICK | {"DERS_ROOTS": str(tmp_path)}
    with running_studio(tmp_path, variables=settings) as studio:
        server = next(
            process
            for process in processes_of(studio.workspace)
            if {"streamlit", "run"} <= set(process.cmdline())
        )
        visitor = Visitor(studio.door)
        for page in PAGES:
            visitor.look(page)
        before = open_in(server)
        for number in range(visits):
            visitor.look(PAGES[number % len(PAGES)])
        assert open_in(server, before) <= before
