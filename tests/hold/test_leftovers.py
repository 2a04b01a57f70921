"""What dead processes leave: the next start removes it, and only it.

Real processes are killed. Nothing of a living one, of another user or another program is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying
from support.shell import ders

from ders_core.errors import OutputError
from ders_core.files.aside import sweep_asides
from ders_core.files.directory import filled_directory, new_directory, replaced_directory
from ders_core.files.output import GROUPS_FOLDER, STATE, new_file, output_directory, sweep_if_exists
from ders_core.files.output_lock import MAKER, lock_path
from ders_core.files.scratch import EMPTY_SECONDS, OWNER, scratch_directory, sweep_scratch

Rounds = Callable[[int, int], int]


class Holder:
    """A process, forked from this one, that is in the middle of a block until it is told to go on,
    or killed. enter: gives the block's context; write: what it does in it."""

    def __init__(
        self,
        enter: Callable[[], AbstractContextManager[Path]],
        write: Callable[[Path], object] = lambda place: None,
    ) -> None:
        told, self._go = os.pipe()
        there, tell = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads are idle
            self._process = os.fork()
        if self._process == 0:
            status = 1
            try:
                with enter() as place:
                    write(place)
                    os.write(tell, b"x")
                    os.read(told, 1)
                status = 0
            finally:
                os._exit(status)
        os.close(told)
        os.close(tell)
        assert os.read(there, 1) == b"x"
        os.close(there)

    def kill(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        self._wait()

    def end(self, status: int = 0) -> None:
        os.write(self._go, b"x")
        assert self._wait() == status

    def _wait(self) -> int:
        os.close(self._go)
        return os.waitpid(self._process, 0)[1]


def fill(place: Path) -> None:
    """As work that is not finished."""
    place.mkdir(exist_ok=True)
    (place / "shard").write_bytes(bytes(1000))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield place
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_temporary_directories_of_the_dead_are_removed_and_no_other(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Holder(lambda: scratch_directory("eval"), lambda place: fill(place / "a"))
    living = Holder(lambda: scratch_directory("eval"), lambda place: fill(place / "a"))
    dead.kill()
    foreign = temporary / "ders-eval-abcdefgh"  # the same name, and not ours
    foreign.mkdir()
    (foreign / "precious").write_text("x")
    forged = temporary / "ders-eval-forged00"
    forged.mkdir()
    (forged / OWNER).write_text("somebody")
    fresh = temporary / "ders-eval-fresh000"  # as between its two first steps
    fresh.mkdir()
    old = temporary / "ders-eval-old00000"
    old.mkdir()
    begun = temporary / "ders-eval-begun000"  # as between the last two
    begun.mkdir()
    (begun / OWNER).touch()
    for place in (old, begun / OWNER):
        os.utime(place, (0, time.time() - EMPTY_SECONDS - 60))
    linked = temporary / "ders-eval-linked00"
    linked.symlink_to(foreign)
    assert len(names(temporary)) == 8
    assert ders("--version").returncode == 0  # any start
    kept = names(temporary)
    assert len(kept) == 5
    assert {path.name for path in (foreign, forged, fresh, linked)} < set(kept)
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # another user finds nothing of his
    living.kill()
    sweep_scratch()
    assert names(temporary) == kept
    monkeypatch.undo()
    sweep_scratch(temporary)
    assert len(names(temporary)) == 4
    assert (foreign / "precious").read_text() == "x"


def test_a_directory_that_was_swept_before_it_had_an_owner_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was stopped for long, between any two of its steps."""
    opened = os.open
    swept: list[str | Path] = []

    def after_a_sweep(path: str | Path, *words: int, **more: Any) -> int:
        if Path(path).name != OWNER or len(swept) == 2:
            return opened(path, *words, **more)
        swept.append(path)
        if len(swept) == 1:  # before the file is made, then after it
            Path(path).parent.rmdir()
            return opened(path, *words, **more)
        handle = opened(path, *words, **more)
        shutil.rmtree(Path(path).parent)
        return handle

    monkeypatch.setattr(os, "open", after_a_sweep)
    with scratch_directory("eval") as place:
        assert len(swept) == 2
        (place / "a").touch()
        assert names(temporary) == [place.name]
    assert names(temporary) == []


def test_nothing_remains_after_success_and_after_an_error(temporary: Path) -> None:
    with scratch_directory("eval") as place:
        (place / "a").mkdir()
        (place / "a" / "b").write_text("x")
        assert place.parent == temporary.resolve()
    assert names(temporary) == []

    def fail() -> None:
        with scratch_directory("eval") as place:
            (place / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(temporary) == []


def test_a_place_for_temporary_files_that_is_gone_is_named(temporary: Path) -> None:
    assert tempfile.gettempdir() == str(temporary)
    temporary.rmdir()
    with raises_saying(OutputError, temporary, "TMPDIR"), scratch_directory("eval"):
        pytest.fail("entered")


def test_outputs_of_the_dead_are_removed_and_no_other(tmp_path: Path) -> None:
    """Locks, and unfinished outputs that nobody can continue. Those that can be stay."""
    living = Holder(lambda: output_directory(tmp_path / "living"), fill)
    Holder(lambda: output_directory(tmp_path / "begun", work={"a": 1}), fill).kill()
    Holder(lambda: output_directory(tmp_path / "lost"), fill).kill()
    (tmp_path / ".theirs.lock").write_text("")
    (tmp_path / ".json.lock").write_text(json.dumps({"maker": "somebody"}))
    (tmp_path / "theirs.partial").mkdir()
    before = names(tmp_path)
    assert {".lost.lock", "lost.partial", "begun.partial"} < set(before)
    assert ".begun.lock" not in before  # the start of another removed it
    with output_directory(tmp_path / "new"):
        pass
    gone = {".lost.lock", "lost.partial"}
    assert set(names(tmp_path)) == set(before) - gone | {"new"}
    with output_directory(tmp_path / "begun", work={"a": 1}, resume=True) as partial:
        assert (partial / "shard").stat().st_size == 1000
    living.end()
    assert {".living.lock", "living.partial"}.isdisjoint(names(tmp_path))
    assert (tmp_path / "living").is_dir()


def write_beside(out: Path) -> None:
    with output_directory(out.with_name("new")):
        pass
    out.with_name("new").rmdir()


@pytest.mark.parametrize("later", [sweep_if_exists, write_beside])
def test_the_state_of_an_output_whose_process_died_right_after_is_removed(
    later: Callable[[Path], object], tmp_path: Path
) -> None:
    def fill_and_die_once_it_has_its_name(partial: Path) -> None:
        def last(source: Path, target: Path) -> None:
            rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        fill(partial)
        (partial / GROUPS_FOLDER).mkdir()
        (partial / GROUPS_FOLDER / "note").touch()
        rename, os.rename = os.rename, last  # type: ignore[assignment]

    out = tmp_path / "out"
    dead = Holder(lambda: output_directory(out, work={"a": 1}), fill_and_die_once_it_has_its_name)
    dead.end(signal.SIGKILL)
    assert (names(out), names(tmp_path)) == ([GROUPS_FOLDER, STATE, "shard"], [".out.lock", "out"])
    later(out)
    assert (names(out), names(tmp_path)) == (["shard"], ["out"])


@pytest.mark.parametrize("name", ["..lock", "...lock", "....lock"])
def test_a_lock_whose_name_names_no_output_stays(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text(json.dumps({"maker": MAKER}))
    (tmp_path / STATE).touch()  # by "..", which the last one seems to stand for
    with output_directory(folder / "out"):
        pass
    assert (names(folder), names(tmp_path)) == ([name, "out"], [STATE, "folder"])


def test_a_directory_that_took_the_place_of_the_dead_one_stays(tmp_path: Path) -> None:
    Holder(lambda: output_directory(tmp_path / "out"), fill).kill()
    shutil.rmtree(tmp_path / "out.partial")  # the next one may get its inode
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "precious").write_text("x")
    with output_directory(tmp_path / "new"):
        pass
    assert names(tmp_path) == ["new", "out.partial"]


def test_hidden_files_of_the_dead_are_removed_and_no_other(tmp_path: Path) -> None:
    living = Holder(lambda: new_file(tmp_path / "b.json"), lambda aside: aside.write_text("b"))
    Holder(lambda: new_file(tmp_path / "a.json"), lambda aside: aside.write_text("half")).kill()
    (tmp_path / ".a.json.elsewhere-123.tmp").write_text("of another host")
    assert len(names(tmp_path)) == 3
    with new_file(tmp_path / "a.json") as aside:
        aside.write_text("whole")
    assert len(names(tmp_path)) == 3
    assert (tmp_path / "a.json").read_text() == "whole"
    sweep_asides(tmp_path)
    assert len(names(tmp_path)) == 3
    living.end()
    assert names(tmp_path) == [".a.json.elsewhere-123.tmp", "a.json", "b.json"]


@pytest.mark.parametrize("function", [new_directory, replaced_directory])
def test_hidden_directories_of_the_dead_are_removed(
    function: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    Holder(lambda: function(tmp_path / "tables"), fill).kill()
    assert len(names(tmp_path)) == 1
    with replaced_directory(tmp_path / "tables") as aside:
        (aside / "whole").write_text("x")
    assert names(tmp_path) == ["tables"]


def test_a_directory_is_filled_after_a_process_died_filling_it(tmp_path: Path) -> None:
    Holder(lambda: filled_directory(tmp_path, last="whole"), fill).kill()
    assert len(names(tmp_path)) == 1
    with filled_directory(tmp_path, last="whole") as aside:
        aside.mkdir()
        (aside / "whole").write_text("x")
    assert names(tmp_path) == ["whole"]


RIVAL = """
import os, sys
from pathlib import Path
from typing import Any
from ders_core.errors import OutputError
from ders_core.files.output_lock import output_lock
target, inside = Path(sys.argv[1]), Path(sys.argv[1] + ".inside")
taken = 0
while taken < int(sys.argv[2]):
    try:
        with output_lock(target):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if two hold it
            inside.unlink()
            taken += 1
    except OutputError:
        pass
"""


def test_two_processes_never_hold_one_lock(tmp_path: Path, rounds: Rounds) -> None:
    """Though the file of the lock is removed and made again all the time."""
    command = [sys.executable, "-c", RIVAL, str(tmp_path / "out"), str(rounds(200, 20_000))]
    rivals = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for rival in rivals:
        _, errors = rival.communicate()
        assert rival.returncode == 0, errors
    assert names(tmp_path) == []


def test_a_lock_that_somebody_removed_is_not_taken_away_from_its_next_holder(
    tmp_path: Path,
) -> None:
    target = tmp_path / "out"
    with output_directory(target):
        lock_path(target).unlink()
        lock_path(target).write_text("of another")
    assert lock_path(target).read_text() == "of another"
