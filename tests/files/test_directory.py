"""Directories that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.messages import raises_saying

from ders_core.errors import OutputError
from ders_core.files.directory import filled_directory, new_directory, replaced_directory


def test_a_new_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with new_directory(path) as aside:
        aside.mkdir()
        (aside / "file").write_text("text")
        (aside.parent / "more").write_text("not kept")
        assert not path.exists()
    assert (path / "file").read_text() == "text"
    assert [place.name for place in path.parent.iterdir()] == ["out"]


def test_an_existing_directory_is_no_new_one(tmp_path: Path) -> None:
    with raises_saying(OutputError, tmp_path, "exists already"), new_directory(tmp_path):
        pytest.fail("entered")


def test_an_interrupted_new_directory_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(aside: Path) -> None:
        aside.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out") as aside:
        interrupted(aside)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    for text in ("old", "new"):
        with replaced_directory(path) as aside:
            (aside / text).write_text(text)
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), replaced_directory(path) as aside:
        raise KeyboardInterrupt
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [place.name for place in tmp_path.iterdir()] == ["tables"]


def make(aside: Path) -> None:
    aside.mkdir()
    for name in ("a.json", "config.json", "weights"):
        (aside / name).write_text(name)


def test_an_empty_directory_is_filled_and_stays_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a link, with its mode, and as the current directory."""
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o2750)
    (tmp_path / "link").symlink_to("target")
    before = target.stat()
    monkeypatch.chdir(target)
    for path in (tmp_path / "link", Path(".")):
        with filled_directory(path, last="config.json") as aside:
            make(aside)
        assert sorted(os.listdir()) == ["a.json", "config.json", "weights"]
        now = target.stat()
        assert (now.st_ino, now.st_mode) == (before.st_ino, before.st_mode)
        for file in target.iterdir():
            file.unlink()
    assert (tmp_path / "link").is_symlink()


def test_a_directory_into_which_others_wrote_is_not_filled(tmp_path: Path) -> None:
    """Meanwhile, under a name of ours; and before."""
    with raises_saying(OutputError, tmp_path, "appeared"), filled_directory(tmp_path, last="") as a:
        make(a)
        (tmp_path / "config.json").write_text("theirs")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        ("config.json", "theirs")
    ]
    with (
        raises_saying(OutputError, tmp_path, "exists already"),
        filled_directory(tmp_path, last="config.json"),
    ):
        pytest.fail("entered")


def test_the_last_file_comes_last_and_an_interrupted_move_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    moved: list[str] = []

    def interrupted(source: Path, target: Path) -> None:
        if target.name == "config.json":
            raise KeyboardInterrupt
        moved.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), filled_directory(tmp_path, last="config.json") as aside:
        make(aside)
    assert moved[:2] == ["a.json", "weights"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unlisted() -> Iterator[Path]:
    """An empty directory that may be written to but not listed, even where tests run as root."""
    user = os.geteuid()
    with TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        directory = Path(place) / "out"
        directory.mkdir()
        directory.chmod(0o333)
        try:
            if user == 0:
                os.seteuid(65534)
            yield directory
        finally:
            os.seteuid(user)
            directory.chmod(0o755)


def test_a_directory_that_may_not_be_listed_is_refused(unlisted: Path) -> None:
    with (
        raises_saying(OutputError, unlisted, "permission"),
        filled_directory(unlisted, last="config.json"),
    ):
        pytest.fail("entered")
