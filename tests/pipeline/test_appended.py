"""Tensors whose lengths depend on the data are appended to weight files: written once, the same
bytes in whatever order groups end, and after every interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from safetensors.torch import load_file, save_file
from support.compress_support import Snapshot, Steps
from support.held_process import held
from support.messages import raises_saying

from ders_core.compute.progress import Progress
from ders_core.compute.tasks import one_by_one
from ders_core.errors import Cancelled, OutputError
from ders_core.files.output import GROUPS_FOLDER
from ders_core.files.store import TensorStore
from ders_core.files.writer import filled
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline import arrangement as arrangement_module
from ders_core.pipeline import compress as compress_module
from ders_core.pipeline import own_files
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

T = TypeVar("T")
R = TypeVar("R")

STREAM = {"codec": "entropy", "bits": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "streams": {"rules": [STREAM, {"codec": "lossless", "projections": "down"}]},
    "some exact": {
        "rules": [STREAM, {"codec": "quantized", "bits": 2, "projections": "up"}],
        "others": [{"codec": "entropy", "bits": 3, "kinds": "attention"}],
    },
    "chain": {
        "rules": [{"codec": "chain", "stages": [{"codec": "sparse", "drop_rate": 0.9}, STREAM]}],
        "base_codec": [{"codec": "entropy", "bits": 3}],
    },
    "wide": {"rules": [{"codec": "lowrank", "energy": 0.6}]},
    "bases": {"rules": [{"codec": "quantized", "bits": 2}], "base": {"clusters": "auto"}},
    "both": {"rules": [STREAM], "base": "auto"},
}
WIDE_TOO = "both"
"""Bases are wider than streams, and the lengths of both depend on the data."""

GROUPS = 6
MAIN = "streams"


def recipe(name: str) -> Recipe:
    return Recipe.model_validate({"name": name, "seed": 5} | RECIPES[name])


@pytest.fixture(scope="module")
def undisturbed(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    compress(mixtral_dir, out, recipe(MAIN))
    return out


def encoded(steps: Steps) -> int:
    return sum(message.startswith("encoded") for _, _, message in steps.calls)


def backwards(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    """As several processes may end: no group's place is known until the last one is finished."""
    return map(function, reversed(items))


def every_other(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    return map(function, [*items[1::2], *items[::2]])


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {WIDE_TOO}))
def test_every_byte_of_a_tensor_is_written_once(
    name: str, mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, list[tuple[int, int]]] = {}

    def spy(handle: int, chunk: Any, position: int) -> int:
        file = os.readlink(f"/proc/self/fd/{handle}")
        if file.endswith(".unfinished"):
            written.setdefault(file, []).append((position, position + len(chunk)))
        return pwrite(handle, chunk, position)

    def look(done: int, total: int, message: str) -> None:
        assert not list((tmp_path / "out.partial" / GROUPS_FOLDER).glob("*.safetensors"))

    pwrite = os.pwrite
    monkeypatch.setattr("ders_core.files.past_cache.os.pwrite", spy)
    report = compress(mixtral_dir, tmp_path / "out", recipe(name), progress=look)
    monkeypatch.undo()
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == len(written) == 1
    tensors = TensorStore.open(tmp_path / "out").tensors.values()
    edges = [sorted(span for span in spans if span[0] != span[1]) for spans in written.values()]
    assert {(each[0][0], each[-1][1]) for each in edges} == {
        (min(t.begin for t in tensors if t.file == file), file.stat().st_size) for file in files
    }
    for each in edges:
        assert all(end == begin for (_, end), (begin, _) in pairwise(each))
    assert all(tensor.begin % tensor.dtype.itemsize == 0 for tensor in tensors)
    assert report.bytes_after == sum(file.stat().st_size for file in files)
    assert report.bytes_after <= resolve(recipe(name), open_checkpoint(mixtral_dir)).bytes_after
    assert verify(tmp_path / "out", against=mixtral_dir).ok


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("runner", [backwards, every_other])
def test_groups_may_end_in_any_order(
    name: str, runner: Any, mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    compress(mixtral_dir, tmp_path / "in order", recipe(name))
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", recipe(name), runner=runner, progress=steps)
    assert any(message.startswith("copied") for _, _, message in steps.calls)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "in order")


def test_interrupted_after_each_step(
    mixtral_dir: Path, undisturbed: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    out, stop_at = tmp_path / "out", 0
    while not out.exists():
        stop_at += 1
        stopped = Steps(stop_at)
        try:
            compress(mixtral_dir, out, recipe(MAIN), progress=stopped)
        except Cancelled:
            steps = Steps()
            compress(mixtral_dir, out, recipe(MAIN), resume=True, progress=steps)
            assert encoded(steps) == max(0, GROUPS - (stop_at - 1))
            assert not any("copied" in message for _, _, message in steps.calls)
        assert snapshot(out) == snapshot(undisturbed)
        if stop_at <= len(stopped.calls):
            shutil.rmtree(out)
    assert stop_at > GROUPS + 5


@pytest.mark.parametrize("times", [1, 4])
def test_killed_and_resumed(
    times: int, mixtral_dir: Path, undisturbed: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """A real process, really killed."""
    out = tmp_path / "out"
    with held(compress, mixtral_dir, out, recipe(MAIN), word="encoded", times=times):
        pass
    (file,) = (tmp_path / "out.partial" / GROUPS_FOLDER).glob("*.unfinished")
    with open(file, "ab") as half:  # a group that was under way
        half.write(bytes(100_000))
    steps = Steps()
    compress(mixtral_dir, out, recipe(MAIN), resume=True, progress=steps)
    assert encoded(steps) == GROUPS - times
    assert snapshot(out) == snapshot(undisturbed)


def ended(mixtral_dir: Path, out: Path) -> Path:
    """A run that was killed when all weight files had their names."""

    def end(*given: Any) -> None:
        raise Cancelled("here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress_module, "finish_packed", end)
        with pytest.raises(Cancelled):
            compress(mixtral_dir, out, recipe(MAIN))
    return out.with_name("out.partial")


@pytest.mark.parametrize("is_lost", [False, True])
def test_killed_after_the_weight_file_has_its_name(
    is_lost: bool, mixtral_dir: Path, undisturbed: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    file = ended(mixtral_dir, tmp_path / "out") / "model.safetensors"
    assert file.is_file()
    if is_lost:
        file.unlink()
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", recipe(MAIN), resume=True, progress=steps)
    assert encoded(steps) == (GROUPS if is_lost else 0)
    assert snapshot(tmp_path / "out") == snapshot(undisturbed)


def compress_and_tell(checkpoint: Path, out: Path, recipe: Recipe, *, progress: Progress) -> None:
    """Tells also when all is written and the disk is to take it up."""
    name = "ders_core.files.output.sync_tree"
    pytest.MonkeyPatch().setattr(name, lambda partial: progress(1, 1, "taken up"))
    compress(checkpoint, out, recipe, progress=progress)


@pytest.mark.parametrize("name", [MAIN, WIDE_TOO])
def test_killed_while_the_disk_takes_up_what_is_written(
    name: str, mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """A large output is synced for minutes."""
    out = tmp_path / "out"
    with held(compress_and_tell, mixtral_dir, out, recipe(name), word="taken up", times=1):
        assert not out.exists()
    steps = Steps()
    compress(mixtral_dir, out, recipe(name), resume=True, progress=steps)
    assert encoded(steps) == 0
    compress(mixtral_dir, tmp_path / "anew", recipe(name))
    assert snapshot(out) == snapshot(tmp_path / "anew")


def stopped(mixtral_dir: Path, out: Path, groups: int) -> Path:
    """A run that was stopped after so many groups; returns their directory."""
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, recipe(MAIN), progress=Steps(groups + 1))
    return out.with_name("out.partial") / GROUPS_FOLDER


@pytest.mark.parametrize("lost", ["00000-gate", "00000-down", "00001-up"])
def test_a_group_that_is_missing_in_the_middle(
    lost: str, mixtral_dir: Path, undisturbed: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """Those behind it are moved, and not encoded again."""
    directory = stopped(mixtral_dir, tmp_path / "out", 5)
    (directory / f"{lost}.json").write_text("{}")
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", recipe(MAIN), resume=True, progress=steps)
    assert encoded(steps) == 2
    copied = sum(message.startswith("copied") for _, _, message in steps.calls)
    assert copied == {"00000-gate": 4, "00000-down": 2, "00001-up": 0}[lost]
    assert snapshot(tmp_path / "out") == snapshot(undisturbed)


def test_a_group_that_has_another_length_by_now(
    mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """The weights of one were changed between two runs."""
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    stopped(source, tmp_path / "out", 5)
    tensors = load_file(source / "model.safetensors")
    changed = next(name for name in tensors if ".layers.0." in name and name.endswith("w2.weight"))
    tensors[changed] = tensors[changed] * 3
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    report = compress(source, tmp_path / "out", recipe(MAIN), resume=True)
    assert report.renewed == 1
    compress(source, tmp_path / "anew", recipe(MAIN))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("out", "anew")]
    assert sizes[0] == sizes[1]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "anew")


def test_a_group_that_the_machine_lost_is_encoded_again(
    mixtral_dir: Path, undisturbed: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    (file,) = stopped(mixtral_dir, tmp_path / "out", 5).glob("*.unfinished")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with raises_saying(OutputError, file, "damaged", "resume"):
        compress(mixtral_dir, tmp_path / "out", recipe(MAIN), resume=True)
    assert not (tmp_path / "out").exists()
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", recipe(MAIN), resume=True, progress=steps)
    assert encoded(steps) == 1
    assert snapshot(tmp_path / "out") == snapshot(undisturbed)


def test_several_weight_files(
    mixtral_dir: Path, tmp_path: Path, undisturbed: Path, snapshot: Snapshot, small_files: None
) -> None:
    compress(mixtral_dir, tmp_path / "out", recipe(MAIN))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = {name: load_file(tmp_path / "out" / name) for name in index["weight_map"].values()}
    assert len(files) > 4
    wanted = load_file(undisturbed / "model.safetensors")
    assert sorted(index["weight_map"]) == sorted(wanted)
    for name, tensor in wanted.items():
        assert files[index["weight_map"][name]][name].equal(tensor)
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert file.stat().st_size < 2 * 60_000
    compress(mixtral_dir, tmp_path / "other", recipe(MAIN), runner=backwards)
    assert snapshot(tmp_path / "other") == snapshot(tmp_path / "out")
    for name in ("out", "undisturbed"):
        synthesize(tmp_path / "out" if name == "out" else undisturbed, tmp_path / f"{name} back")
    back = [tmp_path / f"{name} back" / "model.safetensors" for name in ("out", "undisturbed")]
    assert back[0].read_bytes() == back[1].read_bytes()


@pytest.mark.parametrize("runner", [one_by_one, backwards])
def test_tensors_of_two_item_sizes(
    runner: Any, mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in one file of a small output, and in two of a larger one."""
    compress(mixtral_dir, tmp_path / "one", recipe(WIDE_TOO), runner=runner)
    one = tmp_path / "one" / "model.safetensors"
    monkeypatch.setattr(own_files, "OWN_BYTES", one.stat().st_size - 1)
    compress(mixtral_dir, tmp_path / "two", recipe(WIDE_TOO), runner=runner)
    files = {file.name: load_file(file) for file in (tmp_path / "two").glob("*.safetensors")}
    assert sorted(files) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    wide = files["model-00002-of-00002.safetensors"]
    assert wide
    assert all(name.endswith(".base") for name in wide)
    together = {name: tensor for each in files.values() for name, tensor in each.items()}
    wanted = load_file(one)
    assert together.keys() == wanted.keys()
    assert all(tensor.equal(wanted[name]) for name, tensor in together.items())
    store = TensorStore.open(tmp_path / "two")
    assert all(t.begin % t.dtype.itemsize == 0 for t in store.tensors.values())
    for name in ("one", "two"):
        assert verify(tmp_path / name, against=mixtral_dir).ok


def test_a_small_output_is_compared_while_it_is_copied(
    mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    damaged = False

    def damage(done: int, total: int, message: str) -> None:
        nonlocal damaged
        if message.startswith("writing") and not damaged:
            damaged = True
            (file,) = (tmp_path / "out.partial" / GROUPS_FOLDER).glob("appended-2-*")
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)

    with raises_saying(OutputError, "damaged", "resume"):
        compress(mixtral_dir, tmp_path / "out", recipe(WIDE_TOO), progress=damage)
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", recipe(WIDE_TOO), resume=True, progress=steps)
    assert encoded(steps) == 1
    compress(mixtral_dir, tmp_path / "anew", recipe(WIDE_TOO))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "anew")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement_module, "filled", partial(filled, max_bytes=60_000))
    monkeypatch.setattr(arrangement_module, "MAX_SHARD_BYTES", 60_000)


def test_there_must_be_room_for_the_output_and_one_group(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = resolve(recipe(MAIN), open_checkpoint(mixtral_dir))
    beside = sum(file.stat().st_size for file in mixtral_dir.glob("*.json"))
    free = plan.bytes_after + beside

    def disk_usage(place: Any) -> SimpleNamespace:
        return SimpleNamespace(free=free)

    monkeypatch.setattr("ders_core.files.output.shutil.disk_usage", disk_usage)
    with raises_saying(OutputError, "free", tmp_path):
        compress(mixtral_dir, tmp_path / "out", recipe(MAIN))
    free += max(entry.bytes_after for entry in plan.entries)
    with pytest.raises(Cancelled):
        compress(mixtral_dir, tmp_path / "out", recipe(MAIN), progress=Steps(1))
