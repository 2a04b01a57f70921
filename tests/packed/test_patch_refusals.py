"""Patches that are damaged, tampered with or for another base: refused, and nothing is left."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.messages import raises_saying
from support.patched_checkpoints import files

from ders_core.errors import CheckpointError, DersError, OutputError
from ders_core.files.header import read_header
from ders_core.files.store import TensorStore
from ders_core.packed.patch import apply_patch, make_patch, patch_problems, rollback
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.export import export


def refused(kind: type[DersError], action: Callable[[], Any], out: Path, *facts: object) -> None:
    """The action raises `kind` with these facts, and leaves nothing at `out` nor beside it."""
    with raises_saying(kind, *facts):
        action()
    assert not out.exists()
    assert not list(out.parent.glob(f"{out.name}.*"))


def test_any_other_base_is_refused(
    packed: Path, other: Path, qwen2_moe_dir: Path, dense_parent_dir: Path, tmp_path: Path
) -> None:
    export(packed, tmp_path / "patch", "patch")
    changed = tmp_path / "changed"
    shutil.copytree(other, changed)
    tensors = load_file(changed / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith(".base"))
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] += 1
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    for wrong, fact in (
        (qwen2_moe_dir, "same bases"),
        (dense_parent_dir, "same bases"),
        (changed, repr(name)),
    ):
        action = partial(apply_patch, wrong, tmp_path / "patch", out)
        refused(CheckpointError, action, out, wrong, "not the base", fact, "--base")


def test_a_damaged_patch_is_refused(packed: Path, other: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "patch", "patch")
    weights = tmp_path / "patch" / "patch.safetensors"
    last = max(read_header(weights)[0].values(), key=lambda info: info.end)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    out = tmp_path / "out"
    action = partial(apply_patch, other, tmp_path / "patch", out)
    refused(CheckpointError, action, out, tmp_path / "patch", repr(last.name), "damaged", "copy")
    weights.unlink()
    refused(CheckpointError, action, out, tmp_path / "patch", ".ders.", "missing", "copy")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda m: m.update(files={"../x.safetensors": [*m["pieces"]]}), "contradicts"),
        (lambda m: m.update(format_version=9), "version 9"),
        (lambda m: m.update(kind="rollback"), "contradicts"),
        (lambda m: m["files"]["model.safetensors"].pop(), "contradicts"),
        (lambda m: m.pop("pieces"), "'pieces'"),
        (lambda m: next(iter(m["pieces"].values())).update(dtype="F7"), "contradicts"),
    ],
)
def test_a_tampered_manifest_is_refused(
    packed: Path, other: Path, tmp_path: Path, change: Callable[[Any], Any], fact: str
) -> None:
    export(packed, tmp_path / "patch", "patch")
    rewritten(change)(tmp_path / "patch")
    out = tmp_path / "out"
    action = partial(apply_patch, other, tmp_path / "patch", out)
    refused(CheckpointError, action, out, tmp_path / "patch" / "ders_patch.json", fact)


def flip(name: str) -> Callable[[Path], Any]:
    """Turn one bit of a file."""

    def change(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[len(data) // 2] ^= 1
        (directory / name).write_bytes(data)

    return change


def rewritten(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Change what a manifest says."""

    def write(directory: Path) -> None:
        file = directory / "ders_patch.json"
        manifest = json.loads(file.read_text())
        change(manifest)
        file.write_text(json.dumps(manifest))

    return write


def renamed(new: str) -> Callable[[Path], Any]:
    """Give the first tensor another name, everywhere in the manifest."""

    def change(manifest: Any) -> None:
        old = next(iter(manifest["pieces"]))
        manifest["pieces"][new] = manifest["pieces"].pop(old)
        for file, names in manifest["files"].items():
            manifest["files"][file] = [new if name == old else name for name in names]

    return rewritten(change)


def refiled(new: str) -> Callable[[Path], Any]:
    return rewritten(lambda m: m.update(files={new: list(m["pieces"])}))


def planted(name: str) -> Callable[[Path], Any]:
    """Lay a file among the side files, and name it with its true checksum."""

    def change(directory: Path) -> None:
        file = directory / "files" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"{}")
        checksum = hashlib.sha256(b"{}").hexdigest()
        rewritten(lambda m: m["side"].update({name: checksum}))(directory)

    return change


def replaced_by_directory(name: str) -> Callable[[Path], Any]:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return change


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no side files": (lambda directory: shutil.rmtree(directory / "files"), "'config.json'"),
    "no config": (
        lambda directory: (directory / "files" / "config.json").unlink(),
        "'config.json'",
    ),
    "another config": (flip("files/config.json"), "'config.json'"),
    "another packed manifest": (flip("files/ders_manifest.json"), "'ders_manifest.json'"),
    "a side file that is a directory": (
        replaced_by_directory("files/config.json"),
        "'config.json'",
    ),
    "side file elsewhere": (planted("../x"), "ders_patch.json contradicts"),
    "side file that is a pickle": (planted("pytorch_model.bin"), "ders_patch.json contradicts"),
    "side file that is a patch": (planted("ders_patch.json"), "ders_patch.json contradicts"),
    "side file in the way": (planted("ders_rollback"), "ders_patch.json contradicts"),
    "hidden side file": (planted(".bashrc"), "ders_patch.json contradicts"),
    "side without config": (
        rewritten(lambda m: m["side"].pop("config.json")),
        "ders_patch.json contradicts",
    ),
    "file with a NUL": (refiled("a\0.safetensors"), "ders_patch.json contradicts"),
    "file that is no text": (refiled("\ud800.safetensors"), "half of a character"),
    "file with a long name": (refiled(f"{'a' * 300}.safetensors"), "name too long"),
    "tensor that is no text": (renamed("\ud800"), "half of a character"),
    "tensor named as a header's word": (renamed("__metadata__"), "ders_patch.json contradicts"),
    "tensor with another name": (renamed("another\nname"), "ders_patch.json contradicts"),
    "metadata that is no text": (
        rewritten(lambda m: m.update(metadata={"x": {"\ud800": ""}})),
        "half of a character",
    ),
    "a line break in a key": (
        rewritten(lambda m: m["pieces"].update({"x\ny": {"dtype": 1}})),
        "ders_patch.json: ",
    ),
    "a field too many": (rewritten(lambda m: m.update(more=1)), "key 'more'"),
    "a negative shape": (
        rewritten(lambda m: next(iter(m["pieces"].values())).update(shape=[-1, -1])),
        "'lm_head.weight'",
    ),
}
"""What happens to a patch, and a fact of the refusal."""


@pytest.fixture(scope="module")
def applied(packed: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch, and beside it what came of applying it to `other`."""
    place = tmp_path_factory.mktemp("applied")
    export(packed, place / "patch", "patch")
    apply_patch(other, place / "patch", place / "out")
    return place


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_sentence(
    other: Path, applied: Path, tmp_path: Path, damage: str
) -> None:
    """In a patch and in a way back alike."""
    shutil.copytree(applied, tmp_path / "hurt")
    out = tmp_path / "out"
    patch, patched = tmp_path / "hurt" / "patch", tmp_path / "hurt" / "out"
    change, fact = DAMAGES[damage]
    change(patch)
    change(patched / "ders_rollback")
    refused(DersError, lambda: apply_patch(other, patch, out), out, fact)
    refused(DersError, lambda: rollback(patched, out), out, fact)


def test_what_a_patch_does_not_name_stays_behind(
    packed: Path, other: Path, applied: Path, tmp_path: Path
) -> None:
    """Files laid into a patch reach no model, whatever they are called."""
    shutil.copytree(applied / "patch", tmp_path / "patch")
    for name in ("model.safetensors", "modeling_x.py", "ders_rollback"):
        (tmp_path / "patch" / "files" / name).write_bytes(b"x")
    apply_patch(other, tmp_path / "patch", tmp_path / "out")
    assert files(tmp_path / "out") == files(packed)


def test_reading_back_finds_a_changed_side_file(applied: Path, tmp_path: Path) -> None:
    shutil.copytree(applied / "patch", tmp_path / "patch")
    assert patch_problems(tmp_path / "patch") == []
    flip("files/tokenizer.json")(tmp_path / "patch")
    assert patch_problems(tmp_path / "patch") == ["'tokenizer.json' differs"]


def test_a_packed_manifest_without_a_checksum_gives_no_patch(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    file = tmp_path / "packed" / "ders_manifest.json"
    manifest = json.loads(file.read_text())
    name = min(manifest["checksums"])
    del manifest["checksums"][name]
    file.write_text(json.dumps(manifest))
    out = tmp_path / "out"
    action = partial(export, tmp_path / "packed", out, "patch")
    refused(CheckpointError, action, out, tmp_path / "packed", "checksum", repr(name), "copy")


def test_what_is_no_patch_and_what_was_not_patched(
    packed: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused(
        CheckpointError, lambda: apply_patch(other, packed, out), out, packed, "ders_patch.json"
    )
    refused(CheckpointError, lambda: rollback(packed, out), out, packed, "not patched")
    export(packed, tmp_path / "patch", "patch")
    with raises_saying(CheckpointError, tmp_path / "patch", "is a patch", "ders apply"):
        TensorStore.open(tmp_path / "patch")
    with raises_saying(OutputError, tmp_path / "patch", "exists"):
        apply_patch(other, tmp_path / "patch", tmp_path / "patch")
    with raises_saying(OutputError, "base", "patch"):
        export(packed, out, "original", base=other)


def test_a_damaged_way_back_is_refused(packed: Path, other: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "patch", "patch")
    apply_patch(other, tmp_path / "patch", tmp_path / "applied")
    kept = tmp_path / "applied" / "ders_rollback" / "patch.safetensors"
    tensors = load_file(kept)
    name = min(tensors)
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, kept, {"format": "pt"})
    out = tmp_path / "out"
    action = partial(rollback, tmp_path / "applied", out)
    refused(CheckpointError, action, out, tmp_path / "applied", "rolled back", repr(name))


def test_a_damaged_source_gives_no_patch(packed: Path, tmp_path: Path) -> None:
    source = tmp_path / "packed"
    shutil.copytree(packed, source)
    checkpoint = PackedCheckpoint(source)
    info = checkpoint.store.tensors[f"{checkpoint.manifest.groups[0].prefix}.values"]
    data = bytearray(info.file.read_bytes())
    data[info.begin] ^= 1
    info.file.write_bytes(data)
    out = tmp_path / "out"
    action = partial(export, source, out, "patch")
    refused(CheckpointError, action, out, source, repr(info.name), "damaged", "checksum", "copy")


def test_a_disk_that_lies_is_caught(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back differs from what was written: the output goes."""

    def spoil(*arguments: Any, **options: Any) -> Any:
        made = make_patch(*arguments, **options)
        file = arguments[1] / "patch.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        return made

    monkeypatch.setattr("ders_core.pipeline.export.make_patch", spoil)
    out = tmp_path / "out"
    refused(OutputError, lambda: export(packed, out, "patch"), out, out, "removed", "differs")
