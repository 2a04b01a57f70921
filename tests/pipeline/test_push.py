"""Pushing to a hub: what arrives is what was exported, at once or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    disable_progress_bars,
    enable_progress_bars,
)
from support.hub_server import PART, TOKEN, HubServer, Repo, serving_hub
from support.messages import raises_saying
from support.shell import ders, error_of

from ders_core.errors import Cancelled, CheckpointError, OutputError
from ders_core.files import hub as hubs
from ders_core.pipeline.export import export
from ders_core.pipeline.formats import FORMATS, Format
from ders_core.pipeline.push import bytes_to_push, push

NAME = "me/small-moe"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""huggingface_hub calls its HTTP client in an older way."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving_hub(monkeypatch) as server:
        yield server


@pytest.fixture(scope="session")
def exported(packed_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export beside two large files: one that is sent whole, and one in parts."""
    out = tmp_path_factory.mktemp("push") / "out"
    export(packed_dir, out)
    (out / "folder").mkdir()
    (out / "folder" / "voices.bin").write_bytes(bytes(range(256)) * 40)
    (out / "long.bin").write_bytes(hashlib.shake_256(b"long").digest(2 * PART + 9))
    (out / ".hidden").write_text("stays")
    return out


@pytest.fixture
def bars() -> Iterator[None]:
    """huggingface_hub may draw progress bars, as outside of tests."""
    enable_progress_bars()
    yield
    disable_progress_bars()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name != ".hidden"
    }


def arrived(server: HubServer) -> dict[str, bytes]:
    files = server.repos[NAME].files
    return {path: data for path, (data, _) in files.items() if path != ".gitattributes"}


def oid(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_arrives_is_what_was_exported(hub: HubServer, exported: Path) -> None:
    reported: list[tuple[int, int]] = []
    result = push(
        exported, f" {NAME} ", progress=lambda done, total, _: reported.append((done, total))
    )
    assert arrived(hub) == contents(exported)
    assert hub.repos[NAME].private
    assert len(hub.repos[NAME].commits) == 2
    total = sum(map(len, contents(exported).values()))
    assert (result.bytes, result.files) == (total, len(contents(exported)))
    assert bytes_to_push(exported) == total
    assert result.address == f"http://{hub.host}/{NAME}"
    assert not result.was_there
    assert reported == sorted(reported)
    assert reported[-1] == (2 * total, 2 * total)
    assert len({done for done, _ in reported}) > 6
    assert hub.strangers == []


def test_public_only_if_that_is_said(hub: HubServer, exported: Path) -> None:
    assert not push(exported, NAME, private=False).private
    assert not hub.repos[NAME].private
    with raises_saying(OutputError, NAME, hub.host, "public"):
        push(exported, NAME)


def test_a_failure_in_the_middle_announces_nothing_and_a_second_push_goes_on(
    hub: HubServer, exported: Path, bars: None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse[f"PUT /lfs/{oid(exported / 'long.bin')}"] = (507, "the storage is full")
    with raises_saying(OutputError, NAME, "507", "storage is full", "again"):
        push(exported, NAME)
    assert arrived(hub) == {}
    before = list(hub.sent)
    assert oid(exported / "folder" / "voices.bin") in before
    hub.refuse.clear()
    hub.sent.clear()
    reported: list[int] = []
    result = push(exported, NAME, progress=lambda done, total, _: reported.append(done))
    assert reported[-2] == 2 * result.bytes  # what was there counts as sent
    assert arrived(hub) == contents(exported)
    assert hub.sent
    assert not set(before) & set(hub.sent)
    assert not capsys.readouterr().err


def test_a_transfer_that_is_cut_off(
    hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    hub.cut.add(oid(exported / "folder" / "voices.bin"))
    with raises_saying(OutputError, NAME, hub.host, "cannot be reached", "again"):
        push(exported, NAME)
    assert arrived(hub) == {}
    hub.cut.clear()
    push(exported, NAME)
    assert arrived(hub) == contents(exported)


def test_a_failed_commit_announces_nothing(hub: HubServer, exported: Path) -> None:
    hub.refuse[f"POST /api/models/{NAME}/commit"] = (403, "no quota")
    with raises_saying(OutputError, NAME, "no quota"):
        push(exported, NAME)
    assert arrived(hub) == {}


def test_what_is_all_there_is_not_sent_again(hub: HubServer, exported: Path) -> None:
    push(exported, NAME)
    hub.sent.clear()
    assert push(exported, NAME).was_there
    assert hub.sent == []
    assert len(hub.repos[NAME].commits) == 2


@pytest.mark.parametrize("message", ["hashing long.bin", "sending long.bin"])
def test_a_stop_is_heeded_within_a_file(hub: HubServer, exported: Path, message: str) -> None:
    heard = 0

    def stop(done: int, total: int, words: str) -> None:
        nonlocal heard
        heard += words == message
        if heard == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled, match=r"^stop$"):
        push(exported, NAME, progress=stop)
    assert arrived(hub) == {}
    assert oid(exported / "long.bin") not in hub.objects


def test_a_repository_with_other_files_is_taken(hub: HubServer, exported: Path) -> None:
    hub.repos[NAME] = Repo(private=True)
    hub.repos[NAME].files["README.md"] = (b"mine", False)
    before = dict(hub.repos[NAME].files)
    with raises_saying(OutputError, NAME, hub.host, "taken"):
        push(exported, NAME)
    push(exported, "me/other")
    hub.repos[NAME].files = {**hub.repos["me/other"].files, "config.json": (b"{}", False)}
    with raises_saying(OutputError, NAME, hub.host, "taken"):
        push(exported, NAME)
    assert before.keys() < hub.repos[NAME].files.keys()
    assert len(hub.repos[NAME].commits) == 1


def test_an_empty_repository_is_filled(hub: HubServer, exported: Path) -> None:
    hub.repos[NAME] = Repo(private=True)
    push(exported, NAME)
    assert arrived(hub) == contents(exported)


def test_a_folder_that_cannot_be_read_is_not_left_out(
    hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if Path(path).name == "folder":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with raises_saying(CheckpointError, exported / "folder", os.strerror(errno.EACCES)):
        push(exported, NAME)
    assert hub.asked == []


@pytest.mark.parametrize("target", ["nowhere", "folder"])
def test_a_link_that_is_no_file_is_not_left_out(
    hub: HubServer, exported: Path, tmp_path: Path, target: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "more").symlink_to(copy / target)
    with raises_saying(OutputError, copy / "more", "link"):
        push(copy, NAME)
    assert hub.asked == []


def test_a_name_that_is_not_text(hub: HubServer, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    with raises_saying(OutputError, "caf", "UTF-8"):
        push(copy, NAME)
    assert hub.asked == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_lost_weights_is_refused(
    hub: HubServer, packed_dir: Path, tmp_path: Path, format: Format
) -> None:
    out = tmp_path / "out"
    export(packed_dir, out, format)
    push(out, "me/whole")
    hub.asked.clear()
    weights = next(out.glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size - 1)
    with raises_saying(CheckpointError, weights.name):
        push(out, NAME)
    weights.unlink()
    with raises_saying(CheckpointError, out):
        push(out, NAME)
    assert hub.asked == []


def test_what_arrives_otherwise_is_noticed(
    hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = hubs.Hub.commit

    def damaged(self: hubs.Hub, *arguments: object) -> dict[str, str]:
        sums = ask(self, *arguments)  # type: ignore[arg-type]
        hub.repos[NAME].files["config.json"] = (b"{}", False)
        return sums

    monkeypatch.setattr(hubs.Hub, "commit", damaged)
    with raises_saying(OutputError, "config.json", NAME):
        push(exported, NAME)


@pytest.mark.parametrize("status", [403, 409])
def test_a_name_that_cannot_be_had(hub: HubServer, exported: Path, status: int) -> None:
    hub.refuse["POST /api/repos/create"] = (status, "It belongs to somebody")
    with raises_saying(OutputError, NAME, hub.host, "belongs to somebody", "another name"):
        push(exported, NAME)
    assert hub.sent == []


def test_a_wrong_token_is_refused_before_anything_is_read(
    hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with raises_saying(OutputError, hub.host, "HF_TOKEN", "does not accept"):
        push(exported, NAME)
    assert hub.asked == ["GET /api/whoami-v2"]


def test_no_message_tells_the_token(hub: HubServer, exported: Path) -> None:
    hub.refuse["POST /api/repos/create"] = (400, f"what is {TOKEN} for?")
    with pytest.raises(OutputError, match="what is … for") as caught:
        push(exported, NAME)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("role", "orgs", "name", "facts"),
    [
        ("read", {}, NAME, ("me", "only read")),
        ("write", {"lab": "admin"}, "other/x", ("other", "lab")),
        ("write", {"lab": "read"}, "lab/x", ("lab", "may not write")),
    ],
)
def test_too_few_rights_are_refused_before_anything_is_made(
    hub: HubServer,
    exported: Path,
    role: str,
    orgs: dict[str, str],
    name: str,
    facts: tuple[str, ...],
) -> None:
    hub.role, hub.orgs = role, orgs
    with raises_saying(OutputError, hub.host, *facts):
        push(exported, name)
    assert hub.repos == {}
    assert hub.asked == ["GET /api/whoami-v2"]


def test_an_organisation_of_the_token(hub: HubServer, exported: Path) -> None:
    hub.role, hub.orgs = "fineGrained", {"Lab": "contributor"}
    push(exported, "lab/x")
    assert "lab/x" in hub.repos


@pytest.mark.parametrize("name", ["", "moe", "a/b/c", "me/a..b", "me/x.git", "me/ö", "https://x/y"])
def test_names_that_no_hub_has(hub: HubServer, exported: Path, name: str) -> None:
    with raises_saying(OutputError, repr(name), "OWNER/NAME"):
        push(exported, name)
    assert hub.asked == []


def test_without_a_token_nobody_is_asked(
    hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", " ")
    with raises_saying(OutputError, "HF_TOKEN", hub.host):
        push(exported, NAME)
    assert hub.asked == []


def test_only_what_was_exported_is_pushed(
    hub: HubServer, exported: Path, packed_dir: Path, tmp_path: Path
) -> None:
    with raises_saying(OutputError, packed_dir, "export"):
        push(packed_dir, NAME)
    for nowhere in (tmp_path / "nowhere", exported / "README.md"):
        with raises_saying(OutputError, nowhere, "no directory"):
            push(nowhere, NAME)
    linked = tmp_path / "linked"
    shutil.copytree(exported, linked)
    (tmp_path / "secret").write_text("key")
    (linked / "notes.txt").symlink_to(tmp_path / "secret")
    with raises_saying(CheckpointError, "notes.txt", "link"):
        push(linked, NAME)
    assert hub.asked == []


def test_a_file_that_is_written_meanwhile(hub: HubServer, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)

    def write(done: int, total: int, message: str) -> None:
        if message == "sending folder/voices.bin":
            (copy / "long.bin").write_bytes(b"x")

    with raises_saying(CheckpointError, "long.bin"):
        push(copy, NAME, progress=write)
    assert arrived(hub) == {}


def test_an_unreachable_hub(
    exported: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with raises_saying(OutputError, "127.0.0.1:9", "cannot be reached"):
        push(exported, NAME)
    assert hubs.host() == "127.0.0.1:9"


def test_offline_is_said(hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises_saying(OutputError, "HF_HUB_OFFLINE"):
        push(exported, NAME)


def test_the_command(hub: HubServer, exported: Path) -> None:
    done = ders("push", exported, NAME, "--public")
    assert done.returncode == 0, done.stderr
    assert f"{hub.host}/{NAME}" in done.stdout
    assert "public" in done.stdout
    assert arrived(hub) == contents(exported)
    again = ders("push", exported, NAME, "--public", "--json")
    assert json.loads(again.stdout)["was_there"]
    refused = ders("push", exported, "me")
    assert refused.returncode == 1
    assert "OWNER/NAME" in error_of(refused)
