"""Calculators compute, report, fail and end as the app needs it. These here find an empty module
instead of torch, and start at once; `test_without_torch.py` has one as it is."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError, DersError
from ders_core.jobs.process import package_environment
from ders_core.ui import calculator
from ders_core.ui.calculator import calculate, warm

FUNCTIONS = """
import os, signal, sys, time
from ders_core.errors import CheckpointError

def add(first, second, *, progress):
    for done in range(first):
        progress(done, first, "adding")
    return first + second, os.getpid()

def note(file, *, progress):
    time.sleep(0.2)
    open(file, "w").write(str(os.getpid()))

def refuse(*, progress):
    raise CheckpointError("model.safetensors is damaged")

def fail(*, progress):
    return 1 / 0

def count(*, progress):
    for number in range(10**6):
        progress(number, 10**6, "counting")
        time.sleep(0.01)

def hang(*, progress):
    progress(0, 1, "waiting")
    time.sleep(60)

def die(*, progress):
    os.kill(os.getpid(), signal.SIGKILL)

def halt(*, progress):
    os.kill(os.getpid(), signal.SIGSTOP)

def starve(*, progress):
    raise MemoryError

def garble(text, *, progress):
    os.write(int(sys.argv[1]), len(text).to_bytes(4, "big") + text)
    time.sleep(60)

class Odd:
    def __reduce__(self):
        return getattr, (sys.modules[__name__], "only_here")

def odd(*, progress):
    return Odd()
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "torch.py").touch()
    (tmp_path / "some_functions.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(calculator, "_computes_here", lambda: False)
    yield importlib.import_module("some_functions")
    for idle in calculator._idle:
        idle.end()
    calculator._idle.clear()
    del sys.modules["some_functions"]


def ended(process: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(500):
        if not psutil.pid_exists(process):
            return True
        time.sleep(0.02)
    return False


def test_results_progress_and_errors_come_back_and_one_process_does_it_all(functions: Any) -> None:
    told: list[tuple[int, int, str]] = []
    warm()
    warm()
    total, process = calculate(functions.add, 2, 40, progress=lambda *step: told.append(step))
    steps = list(dict.fromkeys(step for step in told if "start" not in step[2]))
    assert (total, steps) == (42, [(0, 2, "adding"), (1, 2, "adding")])
    assert process != os.getpid()
    with raises_saying(CheckpointError, "model.safetensors", "damaged"):
        calculate(functions.refuse)
    with raises_saying(DersError, "ZeroDivisionError", "ders app"):
        calculate(functions.fail)
    assert calculate(functions.add, 0, 1) == (1, process)
    assert len(calculator._idle) == 1


def test_what_progress_raises_stops_the_work(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, process = calculate(functions.add, 0, 1)

    def leave(*step: object) -> None:
        raise KeyError("another page was asked for")

    with pytest.raises(KeyError):
        calculate(functions.count, progress=leave)
    assert calculate(functions.add, 0, 2) == (2, process)  # it stopped, and goes on with others
    monkeypatch.setattr(calculator, "PATIENCE", 0.05)
    with pytest.raises(KeyError):
        calculate(functions.hang, progress=leave)
    assert ended(process)
    assert calculate(functions.add, 0, 3)[0] == 3


def test_who_waits_for_a_turn_is_told_and_may_leave(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, told = threading.Semaphore(0), list[str]()
    monkeypatch.setattr(calculator, "PULSE", 0.05)
    monkeypatch.setattr(calculator, "_turns", turns)

    def leave(done: int, total: int, words: str) -> None:
        told.append(words)
        raise KeyError("another page was asked for")

    with pytest.raises(KeyError):
        calculate(functions.add, 0, 1, progress=leave)
    assert told == ["waiting for other calculations"]
    assert not turns.acquire(blocking=False)  # who had no turn gives none back
    turns.release()
    with pytest.raises(KeyError):
        calculate(functions.count, progress=leave)
    assert calculate(functions.add, 0, 1)[0] == 1  # each gave its turn back


def test_a_process_that_dies_is_a_sentence_or_replaced(functions: Any) -> None:
    with raises_saying(DersError, "ended", "memory", "again"):
        calculate(functions.die)
    _, process = calculate(functions.add, 0, 1)
    os.kill(process, signal.SIGKILL)  # while it is idle
    assert ended(process)
    total, other = calculate(functions.add, 0, 1)
    assert (total, other != process) == (1, True)


def test_garbage_is_a_sentence(functions: Any) -> None:
    for text in (b"", b"\x80\x04N.", b"\x80\x04]\x94(K\x01K\x02K\x03e."):
        with raises_saying(DersError, "ended", "again"):
            calculate(functions.garble, text)
    with raises_saying(DersError, "MemoryError"):
        calculate(functions.starve)
    with raises_saying(DersError, "ended", "again"):
        calculate(functions.odd)
    assert calculate(functions.add, 0, 1)[0] == 1


def test_nothing_is_imported_from_the_current_directory(
    functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, imported = tmp_path / "model", tmp_path / "imported"
    place.mkdir()
    (place / "queue.py").write_text(f"open({str(imported)!r}, 'w')\n")
    monkeypatch.chdir(place)
    assert calculate(functions.add, 0, 1)[0] == 1
    assert not imported.exists()


def test_a_process_that_hangs_is_left_and_ended(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calculator, "PULSE", 0.05)
    monkeypatch.setattr(calculator, "PATIENCE", 0.05)
    _, process = calculate(functions.add, 0, 1)
    steps: list[object] = []

    def leave(*step: object) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise KeyError("another page was asked for")

    with pytest.raises(KeyError):
        calculate(functions.halt, progress=leave)
    assert ended(process)
    _, process = calculate(functions.add, 0, 1)
    monkeypatch.setattr(calculator, "SILENCE", 0.2)
    with raises_saying(DersError, "nothing", "again"):
        calculate(functions.halt)
    assert ended(process)


def test_none_outlives_its_use(functions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, process = calculate(functions.add, 0, 1)
    calculator._idle.pop().pipe.close()  # as when the app ends
    assert ended(process)
    monkeypatch.setattr(calculator, "IDLE_SECONDS", 0.05)
    _, idle = calculate(functions.add, 0, 1)
    assert ended(idle)
    assert calculate(functions.add, 0, 2)[0] == 2


TAKES_OVER = """
import json, sys, some_functions
from ders_core.ui import calculator
calculator._computes_here = lambda: False
taken = [calculator.take_over(), calculator.take_over()]
for _ in range(3000):
    if calculator._idle:
        break
    some_functions.time.sleep(0.01)
print(json.dumps([taken, calculator.calculate(some_functions.add, 0, 5)]))
"""


def test_a_child_takes_over_what_was_begun(functions: Any, tmp_path: Path) -> None:
    """It waits for what was begun, and then has the same process, which works where it does."""
    done, place = tmp_path / "done", tmp_path / "place"
    place.mkdir()
    environment = os.environ | {"DERS_WORKSPACE": str(place)}
    with calculator.begun(functions.note, str(done), directory=place, environment=environment) as (
        files,
        variables,
    ):
        process = psutil.Process(int(variables[calculator.HANDED_OVER].split()[1]))
        assert process.cwd() == str(place)
        while not process.environ():  # the kernel fills it in a moment after the start
            time.sleep(0.01)
        assert process.environ()["DERS_WORKSPACE"] == str(place)
        child = subprocess.run(
            [sys.executable, "-c", TAKES_OVER],
            env=package_environment() | variables,
            pass_fds=files,
            capture_output=True,
            text=True,
            check=True,
        )
    taken, (total, used) = json.loads(child.stdout)
    assert (taken, total) == ([True, False], 5)
    assert done.read_text() == str(used) == str(process.pid)
    assert ended(used)


@pytest.mark.parametrize("words", ["", "5", "a b", "-1 3", "99999 99999999"])
def test_nothing_is_taken_over_from_odd_words(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(calculator.HANDED_OVER, words)
    assert not calculator.take_over()
    assert calculator.HANDED_OVER not in os.environ
