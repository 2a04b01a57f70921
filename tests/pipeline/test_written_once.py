"""Where all lengths are known, each group is written to its final place, and never again."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.compress_support import Snapshot, Steps
from support.messages import raises_saying

from ders_core.codecs import LowRank, Quantized
from ders_core.errors import Cancelled, OutputError
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import (
    METADATA,
    file_order,
    filled,
    shards,
    tensor_bytes,
    write_file,
)
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline import arrangement as arrangement_module
from ders_core.pipeline import compress as compress_module
from ders_core.pipeline import encoded_note
from ders_core.pipeline.compress import compress
from ders_core.pipeline.encode import CheckpointRef, EncodeTask, encode
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe, Rule

EXACT = Recipe(
    name="exact",
    rules=(Rule(codec=Quantized(bits=2)), Rule(codec=LowRank(rank=2), projections=("up",))),
)
GROUPS = 6


@pytest.fixture(scope="module")
def wanted(
    mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory, snapshot: Snapshot
) -> dict[str, Any]:
    """What the recipe gives; its weights are what groups give that are encoded each to a file of
    its own, beside what is carried, as safetensors lays them out."""
    place = tmp_path_factory.mktemp("wanted")
    compress(mixtral_dir, place / "out", EXACT)
    source = open_checkpoint(mixtral_dir)
    tensors = dict[str, torch.Tensor]()
    for layer in (0, 1):
        for projection in ("gate", "up", "down"):
            staged = place / f"{layer}-{projection}.safetensors"
            ref = CheckpointRef(source.place, source.identity)
            encode(
                EncodeTask(
                    source=ref,
                    recipe=EXACT,
                    key=(layer, projection),
                    device="cpu",
                    staged=str(staged),
                )
            )
            tensors |= load_file(staged)
    carried = load_file(mixtral_dir / "model.safetensors").items()
    tensors |= {name: tensor for name, tensor in carried if ".experts." not in name}
    write_file(
        place / "alone.safetensors",
        file_order({name: TensorSpec.like(tensor) for name, tensor in tensors.items()}),
        lambda name: tensor_bytes(tensors[name]),
        METADATA,
    )
    whole = (place / "out" / "model.safetensors").read_bytes()
    assert whole == (place / "alone.safetensors").read_bytes()
    return snapshot(place / "out")


def encoded(steps: Steps) -> int:
    return sum(message.startswith("encoded") for _, _, message in steps.calls)


def test_every_byte_of_a_tensor_is_written_once(
    mixtral_dir: Path,
    tmp_path: Path,
    wanted: dict[str, Any],
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[tuple[int, int]] = []

    def spy(handle: int, chunk: Any, position: int) -> int:
        if position:  # not the lock of the output
            written.append((position, position + len(chunk)))
        return pwrite(handle, chunk, position)

    pwrite = os.pwrite
    monkeypatch.setattr("ders_core.files.past_cache.os.pwrite", spy)
    staging = tmp_path / "out.partial" / ".ders-groups"

    def look(done: int, total: int, message: str) -> None:
        assert not list(staging.glob("*.safetensors"))

    compress(mixtral_dir, tmp_path / "out", EXACT, progress=look)
    assert snapshot(tmp_path / "out") == wanted
    monkeypatch.undo()
    tensors = PackedCheckpoint(tmp_path / "out").store.tensors.values()
    edges = sorted(written)
    assert edges[0][0] == min(tensor.begin for tensor in tensors)
    assert edges[-1][1] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert all(end == begin for (_, end), (begin, _) in pairwise(edges))


@pytest.mark.parametrize("stop_at", [1, 2, 4, 7, 8, 9, 20])
def test_interrupted_and_resumed_gives_the_same_bytes(
    stop_at: int, mixtral_dir: Path, tmp_path: Path, wanted: dict[str, Any], snapshot: Snapshot
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, EXACT, progress=Steps(stop_at))
    assert not out.exists()
    steps = Steps()
    compress(mixtral_dir, out, EXACT, resume=True, progress=steps)
    assert snapshot(out) == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert encoded(steps) == max(0, GROUPS - (stop_at - 1))
    done, total, _ = steps.calls[-1]
    assert done == total


def test_several_weight_files(
    mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrangement_module, "filled", partial(filled, max_bytes=60_000))
    compress(mixtral_dir, tmp_path / "at once", EXACT)
    for stop_at in (5, 11):
        with pytest.raises(Cancelled):
            compress(mixtral_dir, tmp_path / "out", EXACT, resume=True, progress=Steps(stop_at))
    compress(mixtral_dir, tmp_path / "out", EXACT, resume=True)
    names = [file.name for file in (tmp_path / "out").glob("*.safetensors")]
    assert len(names) > 2
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "at once")
    assert sorted(names) == list(shards(specs_in(tmp_path / "out"), 60_000))


def specs_in(packed: Path) -> dict[str, TensorSpec]:
    """In the order of files."""
    store = PackedCheckpoint(packed).store
    return {
        name: store.tensors[name].spec for file in sorted(store.files) for name in store.files[file]
    }


def stopped(mixtral_dir: Path, out: Path) -> Path:
    """A run that was stopped after four groups; returns its weight file."""
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, EXACT, progress=Steps(5))
    (file,) = (out.with_name("out.partial") / ".ders-groups").glob("*.unfinished")
    return file


def test_a_group_that_the_machine_lost_is_encoded_again(
    mixtral_dir: Path, tmp_path: Path, wanted: dict[str, Any], snapshot: Snapshot
) -> None:
    """Nothing is synced before the end, so what another run wrote is read back."""
    file = stopped(mixtral_dir, tmp_path / "out")
    whole = file.read_bytes()
    compress(mixtral_dir, tmp_path / "other", EXACT)
    final = (tmp_path / "other" / "model.safetensors").read_bytes()
    same = next(n for n in range(len(whole) - 1, 0, -1) if whole[n] == final[n] != 0)
    file.write_bytes(whole[:same] + bytes([whole[same] ^ 1]) + whole[same + 1 :])
    with raises_saying(OutputError, "out.partial", "damaged", "resume"):
        compress(mixtral_dir, tmp_path / "out", EXACT, resume=True)
    assert not (tmp_path / "out").exists()
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", EXACT, resume=True, progress=steps)
    assert encoded(steps) == 1
    assert snapshot(tmp_path / "out") == wanted


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"{}")])
def test_a_weight_file_that_is_gone_is_written_anew(
    damage: Callable[[Path], Any],
    mixtral_dir: Path,
    tmp_path: Path,
    wanted: dict[str, Any],
    snapshot: Snapshot,
) -> None:
    damage(stopped(mixtral_dir, tmp_path / "out"))
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", EXACT, resume=True, progress=steps)
    assert encoded(steps) == GROUPS
    assert snapshot(tmp_path / "out") == wanted


def test_killed_after_the_weight_files_have_their_names(
    mixtral_dir: Path,
    tmp_path: Path,
    wanted: dict[str, Any],
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(*given: Any) -> None:
        raise Cancelled("here")

    with monkeypatch.context() as patch:
        patch.setattr(compress_module, "finish_packed", end)
        with pytest.raises(Cancelled):
            compress(mixtral_dir, tmp_path / "out", EXACT)
    assert (tmp_path / "out.partial" / "model.safetensors").is_file()
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", EXACT, resume=True, progress=steps)
    assert encoded(steps) == 0
    assert snapshot(tmp_path / "out") == wanted


def test_a_group_of_another_machine_is_read_back(
    mixtral_dir: Path,
    tmp_path: Path,
    wanted: dict[str, Any],
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoded_note, "writer_of", lambda run: f"{run}@elsewhere")
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", EXACT, progress=steps)
    assert sum("read back" in message for _, _, message in steps.calls) == GROUPS
    assert snapshot(tmp_path / "out") == wanted


def test_there_must_be_room_for_the_output_once(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = resolve(EXACT, open_checkpoint(mixtral_dir)).bytes_after
    beside = sum(file.stat().st_size for file in mixtral_dir.glob("*.json"))
    free = after - 1

    def disk_usage(place: Any) -> SimpleNamespace:
        return SimpleNamespace(free=free)

    monkeypatch.setattr("ders_core.files.output.shutil.disk_usage", disk_usage)
    with raises_saying(OutputError, "free", tmp_path):
        compress(mixtral_dir, tmp_path / "out", EXACT)
    assert not list(tmp_path.iterdir())
    free = after + beside
    with pytest.raises(Cancelled):
        compress(mixtral_dir, tmp_path / "out", EXACT, progress=Steps(7))
    free = after // 2 + beside  # all groups are written: about a half of the bytes
    compress(mixtral_dir, tmp_path / "out", EXACT, resume=True)
