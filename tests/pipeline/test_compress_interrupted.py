"""Compress, stopped, killed and resumed: the same bytes as in one go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from safetensors.torch import load_file, save_file
from support.compress_support import TWO_BITS, Snapshot, Steps, refused
from support.held_process import held
from support.messages import raises_saying

from ders_core.errors import Cancelled, OutputError
from ders_core.files.output import partial_path
from ders_core.pipeline.compress import compress
from ders_core.recipe import DenseBase, Recipe

T = TypeVar("T")


R = TypeVar("R")


def test_progress_reaches_its_total(mixtral_dir: Path, mix: Recipe, tmp_path: Path) -> None:
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", mix, progress=steps)
    done, total, _ = steps.calls[-1]
    assert done == total
    assert sum("encoded" in message for _, _, message in steps.calls) == 5  # the sixth is kept
    assert any("writing" in message for _, _, message in steps.calls)


@pytest.mark.parametrize("stop_at", [1, 2, 4, 6, 7, 12, 18])
def test_interrupted_and_resumed_gives_the_same_bytes(
    stop_at: int,
    mixtral_dir: Path,
    mix: Recipe,
    packed_dir: Path,
    tmp_path: Path,
    snapshot: Snapshot,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, mix, progress=Steps(stop_at))
    assert not out.exists()
    assert partial_path(out).is_dir()
    steps = Steps()
    report = compress(mixtral_dir, out, mix, resume=True, progress=steps)
    assert snapshot(out) == snapshot(packed_dir)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert len(report.entries) == 6
    again = sum("encoded" in message for _, _, message in steps.calls)
    assert again == max(0, 5 - (stop_at - 1))  # finished groups are not encoded again


def test_stopped_many_times(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    out = tmp_path / "out"
    for _ in range(5):
        with pytest.raises(Cancelled):
            compress(mixtral_dir, out, mix, resume=True, progress=Steps(2))
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)


def test_a_failing_task_leaves_the_others(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    out = tmp_path / "out"

    def breaks(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        for number, item in enumerate(items):
            if number == 3:
                raise RuntimeError("a worker died")
            yield function(item)

    with raises_saying(RuntimeError, "a worker died"):
        compress(mixtral_dir, out, mix, runner=breaks)
    assert not out.exists()
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)


@pytest.mark.parametrize("word", ["encoded", "writing"])
def test_killed_in_the_middle_and_resumed(
    word: str,
    mixtral_dir: Path,
    mix: Recipe,
    packed_dir: Path,
    tmp_path: Path,
    snapshot: Snapshot,
) -> None:
    """A real process, really killed. While it lives, nobody else may write the same output."""
    out = tmp_path / "place" / "out"
    with held(compress, mixtral_dir, out, mix, word=word, times=3):
        for resume in (False, True):
            refused(OutputError, mixtral_dir, out, mix, out, "another process", resume=resume)
    assert not out.exists()
    refused(OutputError, mixtral_dir, out, mix, partial_path(out), "--resume")
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)
    assert [file.name for file in out.parent.iterdir()] == ["out"]


def test_a_group_that_the_machine_lost_is_encoded_again(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """What is written is not synced; its checksums are looked at before another run uses it."""

    def stop(done: int, total: int, message: str) -> None:
        if message.startswith("writing"):
            raise Cancelled("stopped")

    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, mix, progress=stop)
    written = min((tmp_path / "out.partial" / ".ders-groups").glob("*.unfinished"))
    damaged = bytearray(written.read_bytes())
    damaged[-1] ^= 1
    written.write_bytes(damaged)
    with raises_saying(OutputError, written, "damaged", "resume"):
        compress(mixtral_dir, out, mix, resume=True)
    assert not out.exists()
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)


def test_an_unfinished_run_is_not_taken_for_another(
    mixtral_dir: Path, qwen2_moe_dir: Path, mix: Recipe, tmp_path: Path, snapshot: Snapshot
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, mix, progress=Steps(3))
    left = snapshot(partial_path(out))
    refused(OutputError, mixtral_dir, out, mix, partial_path(out), "--resume")
    for source, recipe in (
        (mixtral_dir, TWO_BITS),
        (mixtral_dir, mix.model_copy(update={"seed": 99})),
        (mixtral_dir, mix.model_copy(update={"name": "other"})),
        (qwen2_moe_dir, Recipe(name="mix", seed=11, rules=mix.rules[:1])),
    ):
        refused(OutputError, source, out, recipe, partial_path(out), "another", resume=True)
    assert snapshot(partial_path(out)) == left


def test_a_partial_directory_of_unknown_origin_is_refused(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("x")
    for resume in (False, True):
        refused(OutputError, mixtral_dir, tmp_path / "out", TWO_BITS, "out.partial", resume=resume)
    assert (tmp_path / "out.partial" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_it_began_is_no_obstacle(
    resume: bool, mixtral_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "..ders-state.json.host-1.tmp").write_text("{")
    compress(mixtral_dir, tmp_path / "out", TWO_BITS, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").glob(".*"))


def test_resume_without_anything_to_resume(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    compress(mixtral_dir, tmp_path / "out", mix, resume=True)
    assert snapshot(tmp_path / "out") == snapshot(packed_dir)


def test_a_resumed_run_does_not_change_its_parent(
    mixtral_dir: Path, dense_parent_dir: Path, tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(dense_parent_dir, tmp_path / "parent"))
    recipe = Recipe(name="d", base=DenseBase(dense=parent), rules=TWO_BITS.rules)
    with pytest.raises(Cancelled):
        compress(mixtral_dir, tmp_path / "out", recipe, progress=Steps(3))
    tensors = load_file(parent / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in tensors.items()},
        parent / "model.safetensors",
        {"format": "pt"},
    )
    refused(OutputError, mixtral_dir, tmp_path / "out", recipe, "out.partial", resume=True)
