"""A packed checkpoint that is written while a command reads it: refused, and there is no output."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.compute.progress import Progress
from ders_core.errors import CheckpointError
from ders_core.packed.patch import apply_patch, rollback
from ders_core.pipeline.export import export
from ders_core.pipeline.synthesize import synthesize


@pytest.fixture
def source(packed_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed_dir, tmp_path / "source"))


def writes(source: Path) -> Progress:
    """A progress callback that puts other weight files with the same bytes in place, once."""
    written: list[str] = []

    def interfere(done: int, total: int, message: str) -> None:
        if done and not written:
            written.append(message)
            shutil.copyfile(source / "model.safetensors", source / "aside")
            os.replace(source / "aside", source / "model.safetensors")

    return interfere


VERBS: dict[str, Callable[[Path, Path, Progress], object]] = {
    "synthesize": lambda source, out, progress: synthesize(source, out, progress=progress),
    "packed": lambda source, out, progress: export(source, out, "packed", progress=progress),
    "original": lambda source, out, progress: export(source, out, "original", progress=progress),
    "patch": lambda source, out, progress: export(source, out, "patch", progress=progress),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_packed_checkpoint_must_stay(verb: str, source: Path, tmp_path: Path) -> None:
    with raises_saying(CheckpointError, source / "model.safetensors", "written"):
        VERBS[verb](source, tmp_path / "out", writes(source))
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_base_must_stay(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "patch", "patch", base=source)
    with raises_saying(CheckpointError, source / "model.safetensors", "written"):
        apply_patch(source, tmp_path / "patch", tmp_path / "out", progress=writes(source))
    assert not (tmp_path / "out").exists()
    apply_patch(source, tmp_path / "patch", tmp_path / "out")
    applied = tmp_path / "out"
    with raises_saying(CheckpointError, applied / "model.safetensors", "written"):
        rollback(applied, tmp_path / "back", progress=writes(applied))
    assert not (tmp_path / "back").exists()
