"""Stamps see that a file was written, without reading it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.stamp import check_unchanged, directory_version, stamp, version_of
from ders_core.files.store import TensorStore

PAST_NS = 1_600_000_000_000_000_000


def old(file: Path) -> Path:
    """A file that nobody wrote for years."""
    file.write_bytes(b"0123456789")
    os.utime(file, ns=(PAST_NS, PAST_NS))
    return file


def rewritten(file: Path) -> None:
    file.write_bytes(b"012345678x")


def replaced(file: Path) -> None:
    """Another file of the same size and time takes its place."""
    aside = file.with_name("aside")
    aside.write_bytes(b"012345678x")
    os.utime(aside, ns=(PAST_NS, PAST_NS))
    os.replace(aside, file)


def longer(file: Path) -> None:
    file.write_bytes(b"0123456789x")
    os.utime(file, ns=(PAST_NS, PAST_NS))


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [rewritten, replaced, longer, removed])
def test_a_written_file_is_noticed(change: Callable[[Path], None], tmp_path: Path) -> None:
    stamps = {"a": stamp(old(tmp_path / "a"))}
    check_unchanged(tmp_path, stamps)
    change(tmp_path / "a")
    with raises_saying(CheckpointError, tmp_path / "a"):
        check_unchanged(tmp_path, stamps)


def test_a_time_that_was_set_back_is_another_version(tmp_path: Path) -> None:
    before = version_of({"a": stamp(old(tmp_path / "a"))})
    assert version_of({"a": stamp(tmp_path / "a")}) == before
    rewritten(tmp_path / "a")
    os.utime(tmp_path / "a", ns=(PAST_NS, PAST_NS))
    assert version_of({"a": stamp(tmp_path / "a")}) != before


def test_a_new_mode_is_no_change_of_the_content(tmp_path: Path) -> None:
    stamps = {"a": stamp(old(tmp_path / "a"))}
    (tmp_path / "a").chmod(0o400)
    check_unchanged(tmp_path, stamps)


def test_links_are_followed(tmp_path: Path) -> None:
    old(tmp_path / "blob")
    (tmp_path / "a").symlink_to("blob")
    before = stamp(tmp_path / "a")
    rewritten(tmp_path / "blob")
    assert stamp(tmp_path / "a") != before


def test_a_file_just_written_could_be_written_again(tmp_path: Path) -> None:
    assert not stamp(old(tmp_path / "a")).is_settled


def test_a_version_of_a_directory_is_of_its_files(tmp_path: Path) -> None:
    old(tmp_path / "a")
    before = directory_version(tmp_path)
    (tmp_path / "below").mkdir()
    assert directory_version(tmp_path) == before
    old(tmp_path / "b")
    assert directory_version(tmp_path) != before


def test_a_store_knows_the_version_that_was_opened(mixtral_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    store = TensorStore.open(source)
    assert store.version == TensorStore.open(source).version
    store.check_unchanged()
    config = (source / "config.json").read_bytes()
    (source / "config.json").write_bytes(config)
    with raises_saying(CheckpointError, "config.json"):
        store.check_unchanged()
    assert TensorStore.open(source).version != store.version
