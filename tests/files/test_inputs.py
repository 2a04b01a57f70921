"""Files that a piece of work has opened: which are held, what counts as a change, and when."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.inputs import (
    Held,
    check_inputs,
    held_files,
    hold_files,
    leave_out,
    same_inputs,
    unchanged_inputs,
)
from ders_core.files.output import new_file, output_directory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "input"
    file.write_text("one")
    return file


def replace(file: Path, text: str = "two") -> None:
    other = file.with_name("other")
    other.write_text(text)
    os.replace(other, file)


def test_a_change_is_refused_at_the_end_or_before_an_output(file: Path, tmp_path: Path) -> None:
    with raises_saying(CheckpointError, file, "written"), unchanged_inputs():
        hold_files([file])
        replace(file)
    with raises_saying(CheckpointError, file, "removed"), unchanged_inputs():
        hold_files([file])
        file.unlink()
    file.write_text("one")
    for out in (output_directory(tmp_path / "out"), new_file(tmp_path / "out")):
        with raises_saying(CheckpointError, file, "written"), unchanged_inputs(), out:
            hold_files([file])
            replace(file)
        assert not (tmp_path / "out").exists()


def test_a_change_after_the_output_has_its_name_is_none(file: Path, tmp_path: Path) -> None:
    with unchanged_inputs():
        hold_files([file])
        with output_directory(tmp_path / "out"):
            pass
        replace(file)
    assert (tmp_path / "out").is_dir()


def test_a_second_version_is_refused_when_it_is_opened(file: Path, tmp_path: Path) -> None:
    with unchanged_inputs():
        hold_files([file])
        os.rename(file, tmp_path / "away")
        file.write_text("two")
        with raises_saying(CheckpointError, file, "written"):
            hold_files([file])
        os.replace(tmp_path / "away", file)


def test_a_mode_or_a_link_is_no_change(file: Path) -> None:
    with unchanged_inputs():
        hold_files([file])
        file.chmod(0o600)
        os.link(file, file.with_name("link"))


def test_what_the_work_writes_is_not_held(file: Path, tmp_path: Path) -> None:
    with unchanged_inputs(), output_directory(tmp_path / "out") as partial:
        (partial / "new").write_text("one")
        hold_files([partial / "new"])
        (partial / "new").write_text("two")
    with raises_saying(CheckpointError, file), unchanged_inputs():
        leave_out(tmp_path / "inp")  # a name that another one begins with
        hold_files([file])
        replace(file)


def test_nothing_is_held_outside_a_work_or_of_a_pipe(file: Path, tmp_path: Path) -> None:
    hold_files([file])
    check_inputs()
    os.mkfifo(tmp_path / "pipe")
    with unchanged_inputs():
        hold_files([tmp_path / "pipe", tmp_path / "absent"])
        assert held_files().stamps == {}


def test_a_block_within_a_work_belongs_to_it(file: Path) -> None:
    with raises_saying(CheckpointError, file, "written"), unchanged_inputs():
        with unchanged_inputs():
            hold_files([file])
        replace(file)
    with raises_saying(CheckpointError, file, "written"), unchanged_inputs(), unchanged_inputs():
        hold_files([file])
        replace(file, "three")


def test_a_task_reads_what_the_work_opened(file: Path) -> None:
    with unchanged_inputs():
        hold_files([file])
        held: Held = pickle.loads(pickle.dumps(held_files()))

    def task(change: bool) -> None:
        with same_inputs(held):
            if change:
                replace(file)
            hold_files([file])

    with ThreadPoolExecutor(1) as pool:  # a thread knows nothing of the work, as a process
        pool.submit(task, False).result()
        with raises_saying(CheckpointError, file, "written"):
            pool.submit(task, True).result()
        with raises_saying(CheckpointError, file, "written"):
            pool.submit(task, False).result()


def test_another_machine_compares_with_itself(file: Path) -> None:
    """It may number the same file differently."""
    with unchanged_inputs():
        hold_files([file])
        held = Held(held_files().stamps, "another machine")
    replace(file)
    with same_inputs(held):
        hold_files([file])
    with raises_saying(CheckpointError, file, "written"), same_inputs(held):
        hold_files([file])
        replace(file)
