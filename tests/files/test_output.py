"""Outputs that appear complete or not at all, and interrupted ones that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support import forks
from support.forks import FORKS
from support.messages import raises_saying

from ders_core.errors import (
    Cancelled,
    CheckpointError,
    CodecError,
    DersError,
    JobError,
    OutputError,
)
from ders_core.files.directory import new_directory
from ders_core.files.output import (
    GROUPS_FOLDER,
    STATE,
    new_file,
    new_target,
    output_directory,
    partial_path,
)
from ders_core.files.place_errors import writing
from ders_core.files.side_files import SideFile, copy_side_files
from ders_core.units import bytes_text

WORK = {"recipe": "two", "seed": 3}

Begin = Callable[[Path], AbstractContextManager[Path]]


def refusal(path: Path, **options: object) -> str:
    """The sentence with which an output directory is refused."""
    with pytest.raises(OutputError) as caught, output_directory(path, **options):  # type: ignore[arg-type]
        pytest.fail("entered")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def interrupt(out: Path, *files: str, work: dict[str, object] | None = WORK) -> None:
    """Begin an output, write some of its files, and stop."""

    def begin() -> None:
        with output_directory(out, work=work) as partial:
            for file in files:
                (partial / file).write_text(file)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert not out.exists()


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "below" / "out"
    with output_directory(out, work=WORK) as partial:
        (partial / "a").write_text("x")
        (partial / GROUPS_FOLDER).mkdir()
        (partial / GROUPS_FOLDER / "note").write_text("only to continue from")
        assert not out.exists()
        assert partial == partial_path(out)
    assert names(out) == ["a"]
    assert names(out.parent) == ["out"]


def test_interrupted_without_work_it_leaves_nothing(tmp_path: Path) -> None:
    interrupt(tmp_path / "out", "a", work=None)
    assert names(tmp_path) == []


def test_interrupted_work_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(out, "a", ".b.host-1.tmp")
    assert names(tmp_path) == ["out.partial"]
    (partial_path(out) / "below").mkdir()
    (partial_path(out) / "below" / ".c.host-1.tmp").touch()
    assert "--resume" in refusal(out, work=WORK)
    with output_directory(out, work=WORK, resume=True) as partial:
        assert names(partial) == [STATE, "a", "below"]  # what a killed process left is gone
        assert names(partial / "below") == []
        (partial / "b").write_text("y")
    assert names(out) == ["a", "b", "below"]


@pytest.mark.parametrize("state", [json.dumps({"recipe": "three"}), "{", "[]", None])
def test_other_work_is_not_continued(tmp_path: Path, state: str | None) -> None:
    out = tmp_path / "out"
    interrupt(out, "a")
    if state is None:
        (partial_path(out) / STATE).unlink()
    else:
        (partial_path(out) / STATE).write_text(state)
    message = refusal(out, work=WORK, resume=True)
    assert str(partial_path(out)) in message
    assert "another" in message
    assert "remove" in message
    assert "a" in names(partial_path(out))


def test_work_that_wrote_nothing_is_begun_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial_path(out).mkdir()
    (partial_path(out) / ".a.host-1.tmp").write_text("x")
    with output_directory(out, work=WORK) as partial:
        assert names(partial) == [STATE]


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_what_exists_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path / "nowhere")
    message = refusal(out)
    assert str(out) in message
    assert "exists already" in message
    assert names(tmp_path) == ["out"]


def _write(out: Path) -> str:
    try:
        with output_directory(out):
            return "written"
    except OutputError as error:
        return str(error)


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    forks.start()
    with ProcessPoolExecutor(1, mp_context=FORKS) as other:
        with output_directory(out):
            assert "another process" in other.submit(_write, out).result()
        assert names(tmp_path) == ["out"]
        out.rmdir()
        assert other.submit(_write, out).result() == "written"


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def race() -> None:
        with output_directory(out) as partial:
            (partial / "ours").write_text("x")
            out.mkdir()
            (out / "theirs").write_text("y")

    with raises_saying(OutputError, out, "appeared"):
        race()
    assert names(out) == ["theirs"]


def test_too_little_room_is_seen_first(tmp_path: Path) -> None:
    message = refusal(tmp_path / "out", needs=10**21)
    assert bytes_text(10**21) in message
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["", " ", ".", "..", "/", "missing/..", "~no-such-user/out"])
def test_what_names_nothing_new_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for refuse in (new_target, lambda out: output_directory(out).__enter__()):
        with raises_saying(OutputError, text):
            refuse(text)
    assert names(tmp_path) == ["here"]
    assert names(tmp_path / "here") == []


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with raises_saying(OutputError, "too long"):
        new_target(tmp_path / ("x" * 250))
    assert new_target(tmp_path / ("x" * 200)).name == "x" * 200


def test_below_a_file_nothing_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with raises_saying(OutputError, tmp_path / "file" / "a" / "b", tmp_path / "file"):
        new_target(tmp_path / "file" / "a" / "b")


def test_to_look_at_a_target_makes_nothing(tmp_path: Path) -> None:
    assert new_target(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [CheckpointError("bad"), OutputError("bad"), JobError("bad")])
def test_refused_work_leaves_nothing(error: DersError, tmp_path: Path) -> None:
    """Neither the unfinished output nor the folders above it: nothing of it was done."""

    def begin() -> None:
        with output_directory(tmp_path / "a" / "b" / "out", work=WORK) as partial:
            (partial / "folder").mkdir()
            (partial / "folder" / ".x.host-1.tmp").write_text("x")
            raise error

    with raises_saying(type(error), "bad"):
        begin()
    assert names(tmp_path) == []


def stopped_by(error: BaseException, out: Path, work: dict[str, object]) -> None:
    def begin() -> None:
        with output_directory(out, work=work) as partial:
            (partial / "a").write_text("half of it")
            raise error

    with pytest.raises(type(error)):
        begin()
    assert names(partial_path(out)) == [STATE, "a"]


def test_corrected_work_takes_the_place_of_refused_work(tmp_path: Path) -> None:
    """It could never have been finished as it was asked for, though a part of it was done."""
    out = tmp_path / "out"
    stopped_by(CodecError("no"), out, WORK)
    assert "--resume" in refusal(out, work=WORK)  # the same again could go on
    with output_directory(out, work={"recipe": "corrected"}) as partial:
        assert names(partial) == [STATE]
    assert names(out) == []


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), Cancelled("stop"), OutputError("damaged"), JobError("lost"), "network"],
)
def test_interrupted_work_is_not_thrown_away_by_other_work(
    error: BaseException | str, tmp_path: Path
) -> None:
    if isinstance(error, str):
        error = CheckpointError("the server does not answer")
        error.__cause__ = TimeoutError()
    out = tmp_path / "out"
    stopped_by(error, out, WORK)
    assert "unfinished" in refusal(out, work={"recipe": "another"})
    assert "a" in names(partial_path(out))


def test_an_unfinished_run_is_seen_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(out, "a")
    with raises_saying(OutputError, partial_path(out), "--resume"):
        new_target(out)
    assert new_target(out, resume=True) == out


def test_too_little_room_leaves_no_unfinished_work(tmp_path: Path) -> None:
    refusal(tmp_path / "below" / "out", work=WORK, needs=10**21)
    assert names(tmp_path) == []


# One new file


def test_a_refused_new_file_leaves_no_folder(tmp_path: Path) -> None:
    def begin() -> None:
        with new_file(tmp_path / "below" / "a.txt"):
            raise CheckpointError("bad")

    with raises_saying(CheckpointError, "bad"):
        begin()
    assert names(tmp_path) == []


def test_a_new_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.txt"
    with new_file(path) as aside:
        aside.write_text("x")
        assert not path.exists()
    assert path.read_text() == "x"
    assert names(path.parent) == ["a.txt"]


def test_an_interrupted_new_file_leaves_nothing(tmp_path: Path) -> None:
    def begin() -> None:
        with new_file(tmp_path / "a.txt") as aside:
            aside.write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert names(tmp_path) == []


def test_a_new_file_is_refused_before_the_block(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "file" / "a.txt"):
        with raises_saying(OutputError, path), new_file(path):
            pytest.fail("entered")
    assert names(tmp_path) == ["file", "link"]


def test_an_error_of_the_block_names_the_file_at_fault(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with raises_saying(CheckpointError, nowhere, "cannot be read"), new_file(tmp_path / "a.txt"):
        nowhere.read_text()
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a.txt"):
        _ = 1 / 0
    assert names(tmp_path) == []


def test_a_refused_write_names_the_file(tmp_path: Path) -> None:
    with raises_saying(OutputError, tmp_path / "a"), writing(tmp_path / "a"):
        tmp_path.write_text("x")


def test_files_are_copied_by_content(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("x")
    (tmp_path / "a.json").symlink_to(tmp_path / "blob")  # as a hub cache keeps files
    (tmp_path / "out").mkdir()
    copy_side_files([SideFile("a.json", tmp_path / "a.json")], tmp_path / "out")
    assert not (tmp_path / "out" / "a.json").is_symlink()
    assert (tmp_path / "out" / "a.json").read_text() == "x"


@pytest.mark.parametrize("begin", [new_file, new_directory])
def test_a_new_place_below_home(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--settle=~/a`: no shell replaces a ~ there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with begin(Path("~/folder/a")) as aside:
        aside.mkdir() if begin is new_directory else aside.write_text("x")
    assert (tmp_path / "home" / "folder" / "a").exists()
    assert [place.name for place in tmp_path.iterdir()] == ["home"]
