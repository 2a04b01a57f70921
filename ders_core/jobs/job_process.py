"""A process beside the worker that does its jobs, and ends when none came for a while.

Jobs import torch and much else, which a process keeps in memory until it ends. So the worker
imports none of it and stays small, and a library that crashes ends this process and not the worker.
The worker sends claims through a pipe. This process tells that it begins a job, and, once the end
of the job is in the store, whether it takes another one. When the worker dies, the pipe closes, and
this process ends at once: another worker may have the job.

python -m ders_core.jobs.job_process --workspace DIR --claims NUMBER [--scheduler ADDR]
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Literal

from ders_core.compute.oom import oom_kills
from ders_core.errors import DersError, JobError
from ders_core.jobs.claims import Claim, TakenOver
from ders_core.jobs.deaths import ASKING, Death
from ders_core.jobs.leftovers import sweep
from ders_core.jobs.patience import Leaving, Patience, tell
from ders_core.jobs.perform import InThisProcess, Setting
from ders_core.jobs.process import package_command, package_environment
from ders_core.jobs.stop import stop_signals
from ders_core.jobs.workspace import Workspace

IDLE_SECONDS = 60.0
"""After which the process ends; jobs that follow each other sooner import torch once."""

LOOK = 0.2
"""Seconds between two looks at a request to stop."""

ENDING = 10.0
"""Seconds between the end of a process's pipe and its own."""

Claimed = queue.SimpleQueue[Claim]

Told = Literal["begun", "takes another", "ends"]
"""What the process tells the worker of a job."""

ASKED = (0, *(-number for number in ASKING))
"""Exit statuses of a process that was asked to end."""


class InChildProcess:
    """Does jobs in a child process, which is started for the first one and again after a pause."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._child: _Child | None = None

    def do(self, claim: Claim) -> None:
        """Have one job done, and see that its end is in the store, once the store can be used.

        If the child dies, the job goes back into the queue with what is known of that, or fails
        after the last of several times. A child that was asked to end after an earlier job, before
        it began this one, does not count. If this thread is interrupted, the child is killed and
        the job goes back.
        """
        try:
            missing = self._missing_end(claim)
            if missing is not None:
                with suppress(TakenOver):  # the child may have written the end, and then ended
                    self._setting.patience(missing)
        except BaseException:
            self.close()
            with suppress(JobError, TakenOver):
                claim.release()
            raise

    def rest(self, idle_seconds: float) -> None:
        """End the child if there was no job for long."""
        if idle_seconds > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _missing_end(self, claim: Claim) -> Callable[[], None] | None:
        """Wait until the child has done the job. Returns what writes the job's end to the store,
        if the child did not."""
        if self._child is not None and not self._child.lives:
            self.close()
        was_idle = self._child is not None
        kills, is_told = oom_kills(), False
        try:
            self._child = self._child or _Child(self._setting.workspace, self._setting.scheduler)
            self._child.ask(claim)
            while not self._child.has_answered():
                if self._setting.stop.asked and not is_told:
                    self._child.stop()
                    is_told = True
        except _Ended as ended:
            self._child = None
            now = oom_kills()
            starved = None if now is None or kills is None else now > kills
            death = Death(ended.status, starved)
            left_idle = was_idle and not ended.begun and ended.status in ASKED
            is_put_back = self._setting.stop.asked or left_idle
            return claim.release if is_put_back else partial(claim.lose, death)
        except OSError as error:
            return partial(claim.fail, f"no process can be started that does jobs: {error}")
        return None


class _Ended(Exception):
    """The child has ended. status: as `subprocess` has it. begun: whether it had begun its job."""

    def __init__(self, status: int, *, begun: bool) -> None:
        super().__init__()
        self.status, self.begun = status, begun


class _Child:
    """The worker's side: the process, and an end of the pipe to it."""

    def __init__(self, workspace: Workspace, scheduler: str | None) -> None:
        """Raises OSError if it cannot be started."""
        self._begun = False
        self._pipe, theirs = Pipe()
        with theirs:
            command = package_command("ders_core.jobs.job_process")
            command += ["--workspace", str(workspace.path), "--claims", str(theirs.fileno())]
            command += ["--scheduler", scheduler] if scheduler else []
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=package_environment(),
                    start_new_session=True,  # Ctrl-C asks the worker, and the worker asks it
                )
            except OSError:
                self._pipe.close()
                raise

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, claim: Claim) -> None:
        """Raises _Ended."""
        self._begun = False
        with self._ending():
            self._pipe.send(claim)

    def has_answered(self) -> bool:
        """Wait a moment for the answer. Raises _Ended, also if the child takes no other job, or
        answers as one of another version."""
        lives = self.lives  # before the look: a child that has ended may have answered
        with self._ending():
            told: Told | None = self._pipe.recv() if self._pipe.poll(LOOK) else None
        if told is None and lives:
            return False
        self._begun = self._begun or told is not None
        if told not in ("begun", "takes another"):
            raise self._ended()
        return told == "takes another"

    def stop(self) -> None:
        """Ask it to put its job back."""
        self._process.terminate()

    def end(self) -> int:
        """Kill it, if it lives. Returns its exit status."""
        self._pipe.close()
        self._process.kill()
        return self._process.wait()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Raise _Ended where the pipe is closed, as a process does with its end."""
        try:
            yield
        except (OSError, EOFError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(ENDING)
            raise self._ended() from error

    def _ended(self) -> _Ended:
        return _Ended(self.end(), begun=self._begun)


def serve(claimed: Claimed, pipe: Connection, workspace: Workspace, scheduler: str | None) -> None:
    """Do each job that is claimed, and answer, until SIGTERM or SIGINT.

    Raises JobError if the store is damaged, of another version, or removed.
    """
    with stop_signals() as stop, suppress(Leaving):
        doer = InThisProcess(Setting(workspace, scheduler, stop, Patience(workspace, stop)))
        while not stop.asked:
            with suppress(queue.Empty):
                claim = claimed.get(timeout=LOOK)
                tell_worker(pipe, "begun")
                doer.do(claim)
                tell_worker(pipe, "ends" if stop.asked else "takes another")


def tell_worker(pipe: Connection, told: Told) -> None:
    pipe.send(told)


def listen(pipe: Connection, claimed: Claimed) -> None:
    """Pass on what the worker sends. End this process when the worker is gone, or sends what cannot
    be read here, as after an update of this package while the worker runs."""
    try:
        with suppress(EOFError, OSError):
            while True:
                claimed.put(pipe.recv())
    except Exception as error:
        tell(f"error: a job cannot be read: {error!r}; restart the worker")
    finally:
        os._exit(1)


def main() -> int:
    """The process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ders_core.jobs.job_process")
    parser.add_argument("--workspace", type=Path, required=True)
    # Workers of versions before know it as --pipe, and read other answers.
    parser.add_argument("--claims", type=int, required=True, help="number of the pipe's file")
    parser.add_argument("--scheduler")
    options = parser.parse_args()
    with suppress(OSError, ValueError, RuntimeError):  # without a stderr of its own
        faulthandler.enable()  # a library that crashes leaves its place in the log
    workspace, pipe, claimed = Workspace(options.workspace), Connection(options.claims), Claimed()
    threading.Thread(target=listen, args=(pipe, claimed), daemon=True).start()
    try:
        sweep(workspace)
        serve(claimed, pipe, workspace, options.scheduler)
    except DersError as error:
        tell(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
