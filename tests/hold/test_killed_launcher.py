"""A launcher that is killed takes its server along: no process stays, no port stays taken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.studio_process import HANG_UP

from ders_core.jobs.job import process_lives

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

SERVER = """
import threading
from ders_core.ui.guard.lifeline import hold_on
hold_on("ready")
threading.Event().wait()
"""
LAUNCHER = """
import os, sys
from contextlib import nullcontext
from pathlib import Path
from ders_core.ui.launch import _server
command, nothing_begun = [sys.executable, "-c", sys.argv[1]], nullcontext(([], {}))
with _server(command, dict(os.environ), Path.cwd(), nothing_begun) as (server, line):
    print(server.pid, line.recv(100, int(sys.argv[2])).decode(), flush=True)
    server.wait()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, HANG_UP])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
def test_the_server_ends_with_its_launcher(flags: int, end: signal.Signals) -> None:
    """Also where it was killed before it took what the server said."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, SERVER, str(flags)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert launcher.stdout is not None
    number, said = launcher.stdout.readline().split()
    server = int(number)
    try:
        assert said == "ready"
        assert process_lives(server)
        launcher.send_signal(end)
        launcher.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while process_lives(server) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not process_lives(server)
    finally:
        launcher.stdout.close()
        if psutil.pid_exists(server):
            os.kill(server, signal.SIGKILL)


def test_a_server_whose_launcher_died_before_ends_at_once() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DERS_LIFELINE": str(reading)},
        pass_fds=[reading],
        timeout=PATIENCE,
        capture_output=True,
    )
    os.close(reading)
    assert done.returncode == -signal.SIGTERM
