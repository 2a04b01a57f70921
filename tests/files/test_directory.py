"""Directories that appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import OutputError
from ders_core.files.directory import new_directory, replaced_directory


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
