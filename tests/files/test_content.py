"""The content's hash sees every byte, and reads a file once for each version of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files import content, stamp
from ders_core.files.store import SAMPLE_BYTES, TensorStore


@pytest.fixture
def source(mixtral_sharded_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixtral_sharded_dir, tmp_path / "source"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a clock by which files that were just written count as settled."""
    monkeypatch.setenv(content.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(stamp, "CLOCK_NS", -(1 << 62))
    return tmp_path / "cache"


def read_by(source: Path) -> tuple[str, list[str]]:
    """(the content, what is said while it is read)."""
    messages: list[str] = []
    found = TensorStore.open(source).content(lambda count, message: messages.append(message))
    return found, messages


def change(source: Path, name: str, place: int) -> None:
    """Flip a bit of a tensor's byte in its file."""
    tensor = TensorStore.open(source).tensors[name]
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.begin + place)
        byte = file.read(1)[0]
        file.seek(tensor.begin + place)
        file.write(bytes([byte ^ 1]))


def test_every_byte_counts(source: Path) -> None:
    store = TensorStore.open(source)
    name = max(store.tensors, key=lambda name: store.tensors[name].nbytes)
    before, size = store.content(), store.tensors[name].nbytes
    assert size > 4 * SAMPLE_BYTES
    seen = {before}
    for place in (0, 1, size // 4, size - 1):
        change(source, name, place)
        assert TensorStore.open(source).identity == store.identity  # the sample does not see it
        seen.add(TensorStore.open(source).content())
        change(source, name, place)
    assert len(seen) == 5
    assert TensorStore.open(source).content() == before


def test_a_copy_has_the_same_content_and_another_version(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    first, second = TensorStore.open(source), TensorStore.open(tmp_path / "copy")
    assert first.content() == second.content()
    assert first.version != second.version


def test_a_config_belongs_to_the_content(source: Path) -> None:
    before = TensorStore.open(source).content()
    text = (source / "config.json").read_text()
    (source / "config.json").write_text(text.replace('"rope_theta"', '"theta_rope"'))
    if text == (source / "config.json").read_text():
        (source / "config.json").write_text(text.replace("{", '{"more": 1,', 1))
    assert TensorStore.open(source).content() != before


def test_a_file_is_read_once_for_each_version(source: Path, cache: Path) -> None:
    first, messages = read_by(source)
    assert all("checksums" in message for message in messages)
    again, messages = read_by(source)
    assert again == first
    assert len(messages) == len(TensorStore.open(source).files)
    assert not any("checksums" in message for message in messages)
    name = min(TensorStore.open(source).tensors)
    file = TensorStore.open(source).tensors[name].file.name
    change(source, name, 0)
    changed, messages = read_by(source)
    assert changed != first
    assert {message for message in messages if "checksums" in message} == {f"checksums of {file}"}


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"stamp": 1}', b"\xff"])
def test_a_damaged_cache_is_made_again(damage: bytes, source: Path, cache: Path) -> None:
    first, _ = read_by(source)
    for entry in cache.rglob("*.json"):
        entry.write_bytes(damage)
    assert read_by(source)[0] == first


def test_what_was_just_written_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(content.CACHE_VARIABLE, str(tmp_path / "cache"))
    read_by(source)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_cache_that_cannot_be_written_costs_time_only(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = read_by(source)
    blocked = source / "config.json" / "cache"
    monkeypatch.setenv(content.CACHE_VARIABLE, str(blocked))
    assert read_by(source)[0] == first


def test_without_a_home_nothing_is_kept(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    first, _ = read_by(source)
    monkeypatch.setattr(content, "cache_directory", homeless)
    again, messages = read_by(source)
    assert again == first
    assert any("checksums" in message for message in messages)


def test_a_file_that_is_written_while_it_is_read_is_refused(source: Path) -> None:
    store = TensorStore.open(source)
    name = min(store.tensors)

    def interfere(count: int, message: str) -> None:
        change(source, name, 0)

    with raises_saying(CheckpointError, store.tensors[name].file):
        store.content(interfere)
