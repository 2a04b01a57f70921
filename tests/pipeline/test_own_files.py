"""Variable tensors of a large group are a weight file themselves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.compress_support import Snapshot, Steps
from support.messages import raises_saying

from ders_core.codecs import Entropy, Lossless
from ders_core.errors import Cancelled, OutputError
from ders_core.files.model_files import INDEX
from ders_core.files.output import GROUPS_FOLDER, bytes_below
from ders_core.files.sealed import read_sealed, write_sealed
from ders_core.files.side_files import local_bytes
from ders_core.files.writer import write_file
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline import appended, own_files
from ders_core.pipeline import compress as compress_module
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import arrangement, resolve
from ders_core.pipeline.staging import NAMES
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

RECIPE = Recipe(
    name="some large",
    rules=(Rule(codec=Entropy(bits=1)), Rule(codec=Lossless(), projections=("down",))),
)
LARGE = 30_000
"""Bytes: more than a group of this recipe takes with `entropy`, fewer than with `lossless`."""

GROUPS, OWN = 6, 2


@pytest.fixture
def small_files() -> Iterator[None]:
    """As if the groups with `lossless` were large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_files, "OWN_BYTES", LARGE)
        yield


@pytest.fixture(scope="module")
def in_one(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output where every group is small, so that all are appended to one file."""
    out = tmp_path_factory.mktemp("one") / "out"
    compress(mixtral_dir, out, RECIPE)
    assert [file.name for file in out.glob("*.safetensors")] == ["model.safetensors"]
    return out


@pytest.fixture(scope="module")
def ended(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed when all weight files were in their places."""

    def end(*given: Any) -> None:
        raise Cancelled("here")

    out = tmp_path_factory.mktemp("ended") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_files, "OWN_BYTES", LARGE)
        patch.setattr(compress_module, "finish_packed", end)
        with pytest.raises(Cancelled):
            compress(mixtral_dir, out, RECIPE)
    assert len(list(out.with_name("out.partial").glob("*.safetensors"))) == 1 + OWN
    return out.with_name("out.partial")


@pytest.fixture(scope="module")
def apart(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output where the groups with `lossless` are large."""
    out = tmp_path_factory.mktemp("apart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_files, "OWN_BYTES", LARGE)
        compress(mixtral_dir, out, RECIPE)
    return out


def encoded(steps: Steps) -> int:
    return sum(message.startswith("encoded") for _, _, message in steps.calls)


def test_a_large_group_is_written_once(
    mixtral_dir: Path, tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is only given another name stays the same inode."""
    out, staged = tmp_path / "out", dict[int, int]()
    past_cache: dict[int, bool] = {}

    def watched(path: Path, *given: Any, **options: Any) -> dict[str, str]:
        checksums = write_file(path, *given, **options)
        facts = path.stat()
        staged[facts.st_ino], past_cache[facts.st_ino] = facts.st_size, options["past_cache"]
        return checksums

    monkeypatch.setattr(appended, "write_file", watched)
    compress(mixtral_dir, out, RECIPE)
    inodes = {file.stat().st_ino for file in out.glob("*.safetensors")}
    assert len(staged) == OWN
    assert all(size >= LARGE for size in staged.values())
    assert all(past_cache.values())
    assert staged.keys() < inodes
    assert len(inodes) == 1 + OWN


def test_the_same_tensors_in_more_files(
    mixtral_dir: Path, in_one: Path, apart: Path, tmp_path: Path
) -> None:
    """Read by safetensors alone, as the index says, and by every part of this package."""
    index = json.loads((apart / INDEX).read_text())["weight_map"]
    wanted = load_file(in_one / "model.safetensors")
    files = {name: load_file(apart / name) for name in set(index.values())}
    assert sorted(files) == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    assert (
        sorted(index) == sorted(wanted) == sorted(name for file in files.values() for name in file)
    )
    for name, tensor in wanted.items():
        assert torch.equal(files[index[name]][name].view(torch.uint8), tensor.view(torch.uint8))
    for name in files:
        with safe_open(apart / name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert verify(apart, against=mixtral_dir).ok
    synthesize(apart, tmp_path / "back")
    synthesize(in_one, tmp_path / "wanted")
    back, plain = ((tmp_path / name / "model.safetensors") for name in ("back", "wanted"))
    assert back.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("stop_at", [4, 9])
def test_interrupted_and_resumed_gives_the_same_bytes(
    stop_at: int,
    mixtral_dir: Path,
    apart: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    small_files: None,
) -> None:
    with pytest.raises(Cancelled):
        compress(mixtral_dir, tmp_path / "out", RECIPE, progress=Steps(stop_at))
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", RECIPE, resume=True, progress=steps)
    assert encoded(steps) == max(0, GROUPS - (stop_at - 1))
    assert snapshot(tmp_path / "out") == snapshot(apart)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def as_it_is(partial: Path) -> int:
    return 0


def one_not_yet_renamed(partial: Path) -> int:
    """The first large group's file has its staged name."""
    os.rename(
        partial / "model-00002-of-00003.safetensors",
        partial / GROUPS_FOLDER / "00000-down.safetensors",
    )
    return 0


def one_lost(partial: Path) -> int:
    (partial / "model-00003-of-00003.safetensors").unlink()
    return 1


def one_without_a_header(partial: Path) -> int:
    (partial / "model-00003-of-00003.safetensors").write_bytes(b"\xff" * 40_000)
    return 1


def none_known(partial: Path) -> int:
    """Nothing tells which file is which."""
    (partial / GROUPS_FOLDER / NAMES).write_text("{")
    return GROUPS


def of_an_earlier_version(partial: Path) -> int:
    """Which staged each group as a file, and all of its tensors in it."""
    for note in (partial / GROUPS_FOLDER).glob("*.json"):
        told = read_sealed(note)
        assert told is not None
        del told["appended"]
        write_sealed(note, told)
    return GROUPS


@pytest.mark.parametrize(
    "change",
    [
        as_it_is,
        one_not_yet_renamed,
        one_lost,
        one_without_a_header,
        none_known,
        of_an_earlier_version,
    ],
)
def test_killed_after_files_were_renamed(
    change: Callable[[Path], int],
    mixtral_dir: Path,
    ended: Path,
    apart: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    small_files: None,
) -> None:
    again = change(Path(shutil.copytree(ended, tmp_path / "out.partial")))
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", RECIPE, resume=True, progress=steps)
    assert encoded(steps) == again
    assert snapshot(tmp_path / "out") == snapshot(apart)


def test_nothing_stays_of_files_that_were_cut_otherwise(
    mixtral_dir: Path, ended: Path, in_one: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """As when the source has changed since, and groups have other sizes."""
    partial = Path(shutil.copytree(ended, tmp_path / "out.partial"))
    (partial / INDEX).write_text("{}")
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", RECIPE, resume=True, progress=steps)
    assert encoded(steps) == 0
    assert snapshot(tmp_path / "out") == snapshot(in_one)


def test_what_another_run_renamed_is_read_back(
    mixtral_dir: Path,
    ended: Path,
    apart: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    small_files: None,
) -> None:
    partial = Path(shutil.copytree(ended, tmp_path / "out.partial"))
    file = partial / "model-00002-of-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with raises_saying(OutputError, "00000-down", "damaged", "resume"):
        compress(mixtral_dir, tmp_path / "out", RECIPE, resume=True)
    assert not (tmp_path / "out").exists()
    assert not (partial / GROUPS_FOLDER / "00000-down.safetensors").exists()
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", RECIPE, resume=True, progress=steps)
    assert encoded(steps) == 1
    assert snapshot(tmp_path / "out") == snapshot(apart)


def test_what_a_killed_run_left_takes_no_room(
    mixtral_dir: Path,
    apart: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    small_files: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that was half written, and one that was killed before its note was written."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, RECIPE, progress=Steps(4))
    staged = partial / GROUPS_FOLDER / "00000-down.safetensors"
    half = partial / GROUPS_FOLDER / ".00001-down.safetensors.host-1.tmp"
    half.write_bytes(bytes(50_000))
    staged.with_suffix(".json").unlink()
    assert staged.stat().st_size >= LARGE
    source = open_checkpoint(mixtral_dir)
    plan = resolve(RECIPE, source)
    needs = plan.bytes_after + arrangement(source, plan).most_copied
    needs += local_bytes(source.beside.files)
    free = needs - bytes_below(partial)

    def disk_usage(place: Any) -> SimpleNamespace:
        return SimpleNamespace(free=free)

    monkeypatch.setattr("ders_core.files.output.shutil.disk_usage", disk_usage)
    with raises_saying(OutputError, "free", tmp_path):
        compress(mixtral_dir, out, RECIPE, resume=True)
    assert not staged.exists()
    assert not half.exists()
    free = needs - bytes_below(partial)
    compress(mixtral_dir, out, RECIPE, resume=True)
    assert snapshot(out) == snapshot(apart)
