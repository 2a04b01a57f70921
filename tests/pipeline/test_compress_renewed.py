"""A source that changes before a run goes on, or while it is read: the result never mixes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from support.changed_bytes import change_unseen
from support.compress_support import Snapshot, Steps, refused
from support.messages import raises_saying
from support.shell import ders

from ders_core.checkpoint.digest import stack_digest
from ders_core.codecs import Lossless
from ders_core.errors import Cancelled, CheckpointError, OutputError
from ders_core.packed.manifest import Manifest
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, Rule

T = TypeVar("T")
R = TypeVar("R")

LOSSLESS = Recipe(name="all bits", rules=(Rule(codec=Lossless()),))
FIRST = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
"""Of the group that is encoded first."""


@pytest.fixture
def source(mixtral_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixtral_dir, tmp_path / "source"))


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> Path:
    """The output of a run that was stopped after three of six groups."""
    with pytest.raises(Cancelled):
        compress(source, tmp_path / "out", LOSSLESS, progress=Steps(5))
    assert len(list((tmp_path / "out.partial" / ".ders-groups").glob("*.json"))) == 4
    return tmp_path / "out"


def assert_of(source: Path, packed: Path, back: Path) -> None:
    """Bit for bit the source as it is now, read without this package."""
    synthesize(packed, back)
    wanted, got = (load_file(place / "model.safetensors") for place in (source, back))
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name


def encoded(steps: Steps) -> int:
    return sum(message.startswith("encoded") for _, _, message in steps.calls)


def test_a_group_whose_weights_changed_is_encoded_again(
    source: Path, begun: Path, tmp_path: Path
) -> None:
    change_unseen(source, FIRST)
    steps = Steps()
    report = compress(source, begun, LOSSLESS, resume=True, progress=steps)
    assert report.renewed == 1
    assert encoded(steps) == 3  # two that were missing, and the changed one
    assert any("encoded again" in message for _, _, message in steps.calls)
    assert_of(source, begun, tmp_path / "back")


def test_the_shell_says_that_a_group_was_encoded_again(source: Path, begun: Path) -> None:
    change_unseen(source, FIRST)
    recipe = source.parent / "all.yaml"
    recipe.write_text(LOSSLESS.to_yaml())
    words = ("compress", source, begun, "--recipe", recipe, "--workers", 1, "--device", "cpu")
    done = ders(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert "since: 1" in done.stdout
    assert "again" in done.stdout
    verified = ders("verify", begun, "--against", source)
    assert verified.returncode == 0, verified.stderr


def touched(source: Path) -> None:
    os.utime(source / "model.safetensors")


def copied(source: Path) -> None:
    shutil.copyfile(source / "model.safetensors", source / "aside")
    os.replace(source / "aside", source / "model.safetensors")


@pytest.mark.parametrize("change", [touched, copied])
def test_the_same_weights_in_other_files_are_not_encoded_again(
    change: Callable[[Path], None], source: Path, begun: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    change(source)
    steps = Steps()
    report = compress(source, begun, LOSSLESS, resume=True, progress=steps)
    assert report.renewed == 0
    assert encoded(steps) == 2
    compress(source, tmp_path / "wanted", LOSSLESS)
    assert snapshot(begun) == snapshot(tmp_path / "wanted")


def test_weights_are_hashed_only_if_a_file_was_written(
    source: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Any] = []

    def counted(group: Any) -> str:
        hashed.append(group.key)
        return stack_digest(group)

    monkeypatch.setattr("ders_core.pipeline.renewal.stack_digest", counted)
    with pytest.raises(Cancelled):
        compress(source, begun, LOSSLESS, resume=True, progress=Steps(1))
    assert hashed == []
    touched(source)
    with pytest.raises(Cancelled):
        compress(source, begun, LOSSLESS, resume=True, progress=Steps(5))
    assert len(hashed) == 4
    compress(source, begun, LOSSLESS, resume=True)  # what was confirmed is not hashed again
    assert len(hashed) == 4


def test_a_source_that_is_written_meanwhile_is_refused(source: Path, tmp_path: Path) -> None:
    """By the group that read it, and the run can go on from what is the same."""

    def interfering(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        for number, item in enumerate(items):
            if number == 2:
                change_unseen(source, FIRST)
            yield function(item)

    out = tmp_path / "out"
    with raises_saying(CheckpointError, source, "written"):
        compress(source, out, LOSSLESS, runner=interfering)
    assert not out.exists()
    assert compress(source, out, LOSSLESS, resume=True).renewed == 1
    assert_of(source, out, tmp_path / "back")


def test_what_is_carried_must_not_change_meanwhile(source: Path, tmp_path: Path) -> None:
    """The change comes when all groups are encoded and the weight files are being written."""
    done = False

    def interfere(count: int, total: int, message: str) -> None:
        nonlocal done
        if message.startswith("writing") and not done:
            done = True
            change_unseen(source, "lm_head.weight")

    with raises_saying(CheckpointError, "model.safetensors", "while it was read"):
        compress(source, tmp_path / "out", LOSSLESS, progress=interfere)
    assert not (tmp_path / "out").exists()
    compress(source, tmp_path / "out", LOSSLESS, resume=True)
    assert_of(source, tmp_path / "out", tmp_path / "back")


def test_an_edited_config_is_another_checkpoint(source: Path, begun: Path) -> None:
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace("{", '{"more": 1,', 1))
    refused(OutputError, source, begun, LOSSLESS, "out.partial", "another", resume=True)


def test_the_manifest_knows_the_weights_that_were_encoded(
    source: Path, tmp_path: Path, mix: Recipe
) -> None:
    """Its hash is that of the files' bytes, expert after expert."""
    compress(source, tmp_path / "out", mix)
    manifest = Manifest.read(tmp_path / "out")
    stored = stored_bytes(source / "model.safetensors")
    groups = {group.prefix: group for group in manifest.groups}
    assert manifest.encoded.keys() == groups.keys()
    for prefix, known in manifest.encoded.items():
        whole = b"".join(stored[matrix.tensor] for matrix in groups[prefix].experts)
        assert known.sha256 == hashlib.sha256(whole).hexdigest()
        assert known.sha256 == stack_digest(
            open_checkpoint(source).group(groups[prefix].layer, groups[prefix].projection)
        )


def stored_bytes(file: Path) -> dict[str, bytes]:
    """Tensor name -> its bytes, by safetensors itself."""
    return {
        name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in load_file(file).items()
    }
