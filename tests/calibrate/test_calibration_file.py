"""A calibration file: what it is compared with, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.changed_bytes import change_unseen
from support.measured_calibrations import READ
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration, write_calibration


def test_another_checkpoint_is_refused(
    calibration: Calibration, saved: Callable[[str], Path]
) -> None:
    calibration.check(open_checkpoint(saved("mixtral")))
    with raises_saying(CheckpointError, "another checkpoint", "gpt_oss", "ders calibrate"):
        calibration.check(open_checkpoint(saved("gpt_oss")))


Tensors = dict[str, torch.Tensor]


@pytest.fixture
def rewrite(calibration: Calibration, tmp_path: Path) -> Callable[..., Path]:
    """The calibration with other metadata or tensors."""

    def make(metadata: dict[str, str] | None = None, tensors: Tensors | None = None) -> Path:
        fields = {
            "format": "ders-calibration",
            "version": "1",
            "checkpoint": calibration.checkpoint,
            "tokens": str(calibration.tokens),
        }
        path = tmp_path / "c.safetensors"
        save_file(load_file(calibration.path) | (tensors or {}), path, fields | (metadata or {}))
        return path

    return make


@pytest.mark.parametrize(
    ("metadata", "facts"),
    [
        ({"format": "pt"}, ["calibration file", "ders calibrate"]),
        ({"version": "4"}, ["version '4'", "'1'", "update"]),
        ({"checkpoint": "me"}, ["measured", "ders calibrate"]),
        ({"tokens": "-3"}, ["measured"]),
        ({"tokens": "0"}, ["measured"]),
        ({"tokens": "9" * 40}, ["measured"]),
        ({"tokens": "٣"}, ["measured"]),
    ],
)
def test_metadata_is_checked(
    metadata: dict[str, str], facts: list[str], rewrite: Callable[..., Path]
) -> None:
    with raises_saying(CheckpointError, "c.safetensors", *facts):
        Calibration.open(rewrite(metadata))


@pytest.mark.parametrize(
    "tensors",
    [
        {"0.routed": torch.zeros(4)},
        {"0.routed": torch.zeros(4, 4, dtype=torch.int64)},
        {"0.in.moments": torch.zeros(32, 32, dtype=torch.float64)},
        {"0.in.moments": torch.zeros(32, 31)},
        {"0.in.moments": torch.zeros(3, 3, 3)},
        {"0.in.moments": torch.zeros(0)},
        {"0.in.weighted": torch.zeros(32, 31)},
        {"0.in.each": torch.zeros(4, 32, 31)},
        {"0.in.each": torch.zeros(32)},
        {"00.in.moments": torch.zeros(32)},
        {"0.in.other": torch.zeros(32)},
        {"x": torch.zeros(1)},
    ],
    ids=str,
)
def test_forms_are_checked(tensors: Tensors, rewrite: Callable[..., Path]) -> None:
    with raises_saying(CheckpointError, repr(next(iter(tensors))), "calibration"):
        Calibration.open(rewrite(tensors=tensors))


@pytest.mark.parametrize(
    "values",
    [
        torch.full((32,), float("nan")),
        torch.full((32,), float("inf")),
        torch.full((32,), -1.0),
        torch.eye(32) * -1,
        torch.arange(1024.0).view(32, 32),
    ],
    ids=["nan", "inf", "negative", "negative matrix", "not symmetric"],
)
def test_moments_are_checked(values: torch.Tensor, rewrite: Callable[..., Path]) -> None:
    calibration = Calibration.open(rewrite(tensors={"1.in.moments": values}))
    with raises_saying(CheckpointError, "'1.in.moments'", "second moments"):
        calibration.moments(1, "gate")
    assert calibration.moments(0, "gate") is not None


@pytest.mark.parametrize("counts", [[-1, 2, 0, 0], [0, 0, 0, 0], [READ + 1, 0, 0, 0]], ids=str)
def test_counts_are_checked(counts: list[int], rewrite: Callable[..., Path]) -> None:
    calibration = Calibration.open(rewrite(tensors={"1.routed": torch.tensor(counts)}))
    with raises_saying(CheckpointError, "'1.routed'", "320 tokens"):
        calibration.routed(1)


@pytest.mark.parametrize(
    ("name", "tensor", "needed"),
    [
        ("0.in.moments", torch.ones(31), 32),
        ("0.routed", torch.ones(5, dtype=torch.int64), 4),
    ],
)
def test_sizes_are_checked(
    name: str,
    tensor: torch.Tensor,
    needed: int,
    rewrite: Callable[..., Path],
    saved: Callable[[str], Path],
) -> None:
    calibration = Calibration.open(rewrite(tensors={name: tensor}))
    with raises_saying(CheckpointError, repr(name), f"size {len(tensor)}", f"needs {needed}"):
        calibration.check(open_checkpoint(saved("mixtral")))


def test_files_that_are_none(calibration: Calibration, tmp_path: Path, mixtral_dir: Path) -> None:
    whole = calibration.path.read_bytes()
    cut, pickled = tmp_path / "cut", tmp_path / "pickled"
    cut.write_bytes(whole[:-10])
    torch.save({"0.routed": torch.ones(4)}, pickled)
    for path, fact in (
        (tmp_path / "absent", "ders calibrate"),
        (tmp_path, "ders calibrate"),
        (cut, "truncated"),
        (pickled, "zip archive"),
        (mixtral_dir / "model.safetensors", "calibration file"),
    ):
        with raises_saying(CheckpointError, path.name, fact):
            Calibration.open(path)


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved("mixtral"), tmp_path / "copied"))


def test_a_copy_of_the_measured_checkpoint_is_that_checkpoint(
    calibration: Calibration, copied: Path
) -> None:
    assert open_checkpoint(copied).store.version != calibration.version
    calibration.check(open_checkpoint(copied))


def test_the_measured_files_are_not_read_again(
    calibration: Calibration, saved: Callable[[str], Path], copied: Path
) -> None:
    read: list[str] = []

    def step(count: int, message: str) -> None:
        read.append(message)

    calibration.check(open_checkpoint(saved("mixtral")), step)
    assert not read
    calibration.check(open_checkpoint(copied), step)
    assert read


def test_any_changed_tensor_makes_it_another_checkpoint(
    calibration: Calibration, copied: Path
) -> None:
    """A bit that the identity does not see, of a tensor that holds no expert."""
    change_unseen(copied, "lm_head.weight")
    with raises_saying(CheckpointError, calibration.path, copied, "calibrate"):
        calibration.check(open_checkpoint(copied))


def test_a_calibration_of_before_there_were_hashes_is_still_read(
    calibration: Calibration, copied: Path, tmp_path: Path
) -> None:
    """The identity alone decides."""
    tensors = load_file(calibration.path)
    old = tmp_path / "old.safetensors"
    write_calibration(old, calibration.checkpoint, calibration.tokens, tensors)
    assert Calibration.open(old).content == ""
    Calibration.open(old).check(open_checkpoint(copied))
