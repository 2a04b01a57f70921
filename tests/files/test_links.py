"""Links that lead out of a checkpoint: their targets get into no output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.messages import raises_saying
from support.shell import ders

from ders_core.errors import CheckpointError
from ders_core.files.links import leads_out
from ders_core.files.store import TensorStore
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.card import CARD, read_card
from ders_core.pipeline.report import Report
from ders_core.recipe import presets

SECRET = "-----BEGIN OPENSSH PRIVATE KEY----- never to be copied"
LINKED = ("chat_template.jinja", "deep/er/notes.txt", "tokenizer.model")
RECIPE = next(iter(presets()))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "home" / "id_key"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


@pytest.fixture
def linked(mixtral_dir: Path, tmp_path: Path, key: Path) -> Path:
    """A model with links to a key: absolute, relative, through a folder and through a link."""
    directory = Path(shutil.copytree(mixtral_dir, tmp_path / "model"))
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    (directory / "chat_template.jinja").symlink_to("../home/id_key")
    (directory / "tokenizer.model").symlink_to(key)
    (directory / ".hidden").symlink_to(key)
    (directory / "deep" / "er" / "notes.txt").symlink_to("../../.hidden")
    (directory / "LICENSE").symlink_to("tokenizer_config.json")
    (directory / "folder").symlink_to(key.parent)
    return directory


def holds_secret(directory: Path) -> list[str]:
    return [
        str(file)
        for file in directory.rglob("*")
        if file.is_file() and not file.is_symlink() and SECRET.encode() in file.read_bytes()
    ]


def test_no_command_copies_what_a_link_leads_to(
    linked: Path, tmp_path: Path, mixtral_dir: Path
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    done = ders("compress", linked, place / "packed", "--recipe", RECIPE, "--workers", 1)
    assert (done.returncode, all(name in done.stdout for name in LINKED)) == (0, True)
    assert (place / "packed" / "LICENSE").read_text() == (
        linked / "tokenizer_config.json"
    ).read_text()
    packed = Path(shutil.copytree(place / "packed", tmp_path / "attacked"))
    for name in LINKED:
        (packed / name).parent.mkdir(parents=True, exist_ok=True)
        (packed / name).symlink_to(linked / name)
    commands = (
        ("synthesize", packed, place / "back"),
        ("export", packed, place / "copy"),
        ("export", packed, place / "original", "--format", "original"),
        ("export", packed, place / "patch", "--format", "patch", "--base", linked),
        ("apply", linked, place / "patch", place / "applied"),
    )
    for words in commands:
        done = ders(*words)
        assert (done.returncode, done.stderr.count("ders: ")) == (0, 0), words
        assert all(name in done.stdout for name in LINKED), words
    assert ders("rollback", place / "applied", place / "base").returncode == 0
    assert holds_secret(place) == []
    assert holds_secret(tmp_path / "home") != []


def test_they_are_told_where_other_files_that_stay_are(linked: Path) -> None:
    found = TensorStore.open(linked).beside
    assert found.linked_out == LINKED
    assert not set(LINKED) & {file.name for file in found.files}
    assert "LICENSE" in {file.name for file in found.files}
    told = ders("info", linked)
    assert all(name in told.stdout for name in LINKED)
    assert json.loads(ders("info", linked, "--json").stdout)["linked_out"] == list(LINKED)


def test_reports_of_before_name_no_links() -> None:
    old = {"entries": [], "bytes_before": 2, "bytes_after": 1, "device": "cpu", "seconds": 1.0}
    assert Report.from_dict(old).linked_out == ()
    assert Report.from_dict(old | {"linked_out": ["a"]}).linked_out == ("a",)


def test_the_hubs_cache_is_followed(mixtral_dir: Path, tmp_path: Path, key: Path) -> None:
    """As huggingface_hub keeps a repository: snapshots are links to blobs beside them."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    for file in [each for each in mixtral_dir.iterdir() if each.is_file()]:
        blob = repository / "blobs" / f"hash-of-{file.name}"
        shutil.copy(file, blob)
        for name in (file.name, f"sub/{file.name}"):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            up = "../../../" if "/" in name else "../../"
            (snapshot / name).symlink_to(f"{up}blobs/{blob.name}")
    other = tmp_path / "hub" / "models--owner--private" / "blobs" / "weights"
    other.parent.mkdir(parents=True)
    other.write_text(SECRET)
    (snapshot / "tokenizer.model").symlink_to("../../../models--owner--private/blobs/weights")
    (snapshot / "refs.txt").symlink_to("../../refs")
    for directory in (snapshot, snapshot / "sub"):
        store = TensorStore.open(directory)
        names = {file.name for file in store.beside.files}
        assert {file.name for file in mixtral_dir.iterdir()} - names == {
            "config.json",
            "model.safetensors",
        }
    assert TensorStore.open(snapshot).beside.linked_out == ("tokenizer.model",)
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    assert TensorStore.open(link).beside.linked_out == ("tokenizer.model",)


def test_weights_and_what_describes_them_may_be_links(
    mixtral_sharded_dir: Path, tmp_path: Path
) -> None:
    """A directory of links to another model, as `cp -s` makes it."""
    directory = tmp_path / "links"
    directory.mkdir()
    for file in mixtral_sharded_dir.iterdir():
        (directory / file.name).symlink_to(file)
    assert open_checkpoint(directory).identity == open_checkpoint(mixtral_sharded_dir).identity
    assert "tokenizer.json" in TensorStore.open(directory).beside.linked_out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", MANIFEST])
@pytest.mark.parametrize("content", [SECRET, json.dumps({"auths": SECRET}), json.dumps([SECRET])])
def test_a_secret_in_place_of_a_description_is_neither_copied_nor_quoted(
    mixtral_sharded_dir: Path, packed_dir: Path, tmp_path: Path, name: str, content: str
) -> None:
    source = packed_dir if name == MANIFEST else mixtral_sharded_dir
    directory = Path(shutil.copytree(source, tmp_path / "model"))
    secret = tmp_path / "secret"
    secret.write_text(content)
    (directory / name).unlink()
    (directory / name).symlink_to(secret)
    with raises_saying(CheckpointError, name):
        open_checkpoint(directory)
    for words in (["info", directory], ["export", directory, tmp_path / "out"]):
        done = ders(*words)
        assert done.returncode == 1
        assert "PRIVATE KEY" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_a_layout_or_a_card_elsewhere_is_not_read(linked: Path, key: Path, tmp_path: Path) -> None:
    key.write_text(f"---\nlicense: {SECRET}\n---\n")
    (linked / CARD).symlink_to(key)
    assert read_card(linked) == ""
    (linked / "ders_layout.yaml").symlink_to(key)
    with raises_saying(CheckpointError, "ders_layout.yaml", "link"):
        open_checkpoint(linked)


def test_loops_and_dead_ends_are_left_alone(mixtral_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(mixtral_dir, tmp_path / "model"))
    (directory / "round.txt").symlink_to("round.txt")
    (directory / "gone.txt").symlink_to("nowhere")
    (directory / "up").symlink_to("..")
    found = TensorStore.open(directory).beside
    assert not {"round.txt", "gone.txt"} & {*found.linked_out, *(f.name for f in found.files)}
    assert leads_out(directory / "up", directory)
