"""Processes beside the app's that compute with tensors while a page waits for the result.

The app's own process imports no torch: that takes seconds and much memory, and pages are drawn from
headers and tables. A calculator is started when it is needed, or a little earlier (`warm`), is used
again, and ends when it has been idle for a while or the app has ended. Work that a page does not
wait for is a job.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ders_core.compute.progress import Progress, quiet
from ders_core.errors import Cancelled, DersError
from ders_core.jobs.process import package_command, package_environment

R = TypeVar("R")

AT_ONCE = 2
"""Calculators that compute; who asks for one more waits."""

IDLE_SECONDS = 120.0
"""After which a calculator ends."""

WAITING = "OMP_WAIT_POLICY"
"""How torch's threads wait for each other. By default they keep the cores busy while they wait; a
job may need these, and then both take many times as long."""

HANDED_OVER = "DERS_CALCULATOR"
"""Environment variable of a process that takes a calculator over from its parent: the number of its
end of the pipe, and the calculator's id."""

HandedOver = tuple[list[int], dict[str, str]]
"""What the child gets that takes a calculator over: files that it inherits, and variables of its
environment."""

PATIENCE = 2.0
"""Seconds in which a calculator must stop when it is asked to."""

PULSE = 0.5
"""Seconds without a message after which the last one is told again: a page that nobody waits for
any more stops then, also if the calculator hangs or the page waits for its turn."""

SILENCE = 600.0
"""Seconds without a message after which a calculator is given up."""

_turns = threading.Semaphore(AT_ONCE)
_lock = threading.Lock()
_idle: list[_Calculator] = []


def calculate(function: Callable[..., R], *arguments: Any, progress: Progress = quiet) -> R:
    """`function(*arguments, progress=...)`, computed by a calculator; here, if this process has
    imported torch.

    function: of a module, as pickle finds it; arguments and result can be pickled. progress: called
    in this thread, now and then with what it was told already; what it raises stops the work.
    Raises the function's DersError; any other error is told as one, and so is a process that ends,
    hangs or sends what cannot be read.
    """
    if _computes_here():
        return function(*arguments, progress=progress)
    with _turn(progress):
        request = function, arguments
        used = _take_idle()
        if used is not None:
            with suppress(_Ended), _lent(used):  # being idle, it may have ended just now
                used.ask(request)
                return used.answer(progress)  # type: ignore[no-any-return]
        try:
            fresh = _Calculator.started()
        except OSError as error:
            raise DersError(f"no process can be started that computes: {error}") from error
        try:
            with _lent(fresh):
                fresh.ask(request)
                return fresh.answer(progress)  # type: ignore[no-any-return]
        except _Ended as error:
            raise DersError(
                "the process that computes ended before it had a result; there may be too little "
                "memory, or something killed it; try again"
            ) from error


@contextmanager
def _turn(progress: Progress) -> Iterator[None]:
    """Wait for one of the calculators that compute at once; what `progress` raises ends that."""
    while not _turns.acquire(timeout=PULSE):
        progress(0, 0, "waiting for other calculations")
    try:
        yield
    finally:
        _turns.release()


def warm() -> bool:
    """Start a calculator unless there is one, so that the first result comes sooner. Returns
    whether one waits for work; False where this process computes itself."""
    with _lock:
        if not _computes_here() and not _idle:
            with suppress(OSError):
                _idle.append(_Calculator.started())
        return bool(_idle)


@contextmanager
def begun(
    function: Callable[..., object],
    *arguments: Any,
    directory: Path,
    environment: Mapping[str, str],
) -> Iterator[HandedOver]:
    """Start a calculator that begins at once with `function(*arguments, progress=...)`, for the
    child process that the block starts, and that calls `take_over`. Yields nothing to hand over if
    no calculator can be started.

    directory, environment: the child's, so that this calculator works where the child's own do.
    """
    try:
        calculator = _Calculator.started(directory, environment)
    except OSError:
        yield [], {}
        return
    with calculator.pipe:
        with suppress(_Ended):
            calculator.ask((function, arguments))
        descriptor = calculator.pipe.fileno()
        yield [descriptor], {HANDED_OVER: f"{descriptor} {calculator.process.pid}"}


def take_over() -> bool:
    """Use the calculator that the parent of this process began, once it has done what it began
    with. Returns whether there is one."""
    numbers = os.environ.pop(HANDED_OVER, "").split()
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)):
        return False
    descriptor, process = map(int, numbers)
    try:
        os.set_inheritable(descriptor, False)
        calculator = _Calculator(Connection(descriptor), psutil.Process(process))
    except (OSError, psutil.Error):
        return False
    calculator.is_ready = False

    def wait() -> None:
        with suppress(_Ended, DersError), _lent(calculator):
            calculator.answer(quiet)

    threading.Thread(target=wait, name="waits for what was begun", daemon=True).start()
    return True


def _computes_here() -> bool:
    return "torch" in sys.modules


def _take_idle() -> _Calculator | None:
    with _lock:
        return _idle.pop() if _idle else None


@contextmanager
def _lent(calculator: _Calculator) -> Iterator[None]:
    """Keep the calculator for the next request if it can take one; else end it."""
    try:
        yield
    finally:
        if calculator.is_ready:
            with _lock:
                _idle.append(calculator)
        else:
            calculator.end()


class _Ended(Exception):
    """The process at the other end of a pipe has ended."""


class _Calculator:
    """One process, and this end of the pipe to it."""

    def __init__(self, pipe: Connection, process: psutil.Process) -> None:
        self.pipe, self.process = pipe, process
        self.is_ready = True

    @classmethod
    def started(
        cls, directory: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> _Calculator:
        """A new process, by default with this one's directory and environment. Raises OSError if
        it cannot be started."""
        pipe, theirs = Pipe()
        with theirs:
            process = psutil.Popen(
                [
                    *package_command("ders_core.ui.calculator"),
                    *(str(theirs.fileno()), str(IDLE_SECONDS)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=directory,
                env={WAITING: "PASSIVE"} | package_environment(environment),
                start_new_session=True,
            )
        threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie
        return cls(pipe, process)

    def ask(self, request: Any) -> None:
        """Raises `_Ended`."""
        self.is_ready = False
        with _ending():
            self.pipe.send(request)

    def answer(self, progress: Progress) -> Any:
        """To what was asked. Raises `_Ended`, and what the request or `progress` raises."""
        step, heard = (0, 0, "starting to compute"), time.monotonic()
        while True:
            with _ending():
                if self.pipe.poll(PULSE):
                    is_last, value = self.pipe.recv()
                    if is_last:
                        self.is_ready = True
                        break
                    done, total, message = value
                    step, heard = (done, total, message), time.monotonic()
            if time.monotonic() - heard > SILENCE:
                raise DersError(
                    f"the process that computes said nothing for {SILENCE:.0f} seconds, so it was "
                    "ended; try again"
                )
            try:
                progress(*step)
            except BaseException:
                self._stop()
                raise
        if isinstance(value, DersError):
            raise value
        return value

    def _stop(self) -> None:
        """Ask for the end of the request; it is ready again if that comes soon."""
        with suppress(_Ended), _ending():
            self.pipe.send(None)
            while self.pipe.poll(PATIENCE):
                is_last, _ = self.pipe.recv()
                if is_last:
                    self.is_ready = True
                    return

    def end(self) -> None:
        self.pipe.close()
        with suppress(psutil.Error):
            self.process.kill()  # one that hangs hears nothing else


@contextmanager
def _ending() -> Iterator[None]:
    """Raise `_Ended` where a pipe breaks, or something comes out of it that nobody has sent so:
    unpickling that can raise anything."""
    try:
        yield
    except Exception as error:
        raise _Ended from error


class _Served:
    """The process's own side: a thread reads requests, the main thread computes."""

    def __init__(self, descriptor: int, idle_seconds: float) -> None:
        self._pipe, self._idle_seconds = Connection(descriptor), idle_seconds
        self._requests: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = (
            queue.SimpleQueue()
        )
        self._stop = threading.Event()

    def run(self) -> None:
        """Until there is no request for a while, or nobody is left to ask."""
        threading.Thread(target=self._listen, daemon=True).start()
        import torch  # noqa: F401 (now, before anybody asks)

        with suppress(queue.Empty, OSError):
            while True:
                function, arguments = self._requests.get(timeout=self._idle_seconds)
                self._pipe.send((True, self._value(function, arguments)))

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                message = self._pipe.recv()
                if message is None:
                    self._stop.set()
                else:
                    self._stop.clear()
                    self._requests.put(message)
        self._stop.set()  # the app has ended
        threading.Event().wait(PATIENCE)
        os._exit(0)

    def _value(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The result, or a DersError."""
        try:
            return function(*arguments, progress=self._report)
        except DersError as error:
            return error
        except Exception as error:
            traceback.print_exc()
            return DersError(
                f"unexpected: {type(error).__name__}: {error}; details in the output of `ders app`"
            )

    def _report(self, done: int, total: int, message: str) -> None:
        if self._stop.is_set():
            raise Cancelled
        self._pipe.send((False, (done, total, message)))


if __name__ == "__main__":
    _Served(int(sys.argv[1]), float(sys.argv[2])).run()
