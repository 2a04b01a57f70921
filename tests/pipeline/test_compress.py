"""Compress: the same bytes whoever ran it and however often it was interrupted, or nothing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from ders_core.codecs import Keep, Quantized, Sparse
from ders_core.errors import Cancelled, CheckpointError, DersError, OutputError, RecipeError
from ders_core.files.output import partial_path
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline import encode as encode_module
from ders_core.pipeline.compress import compress
from ders_core.pipeline.report import Report
from ders_core.recipe import DenseBase, Recipe, Rule, presets

T = TypeVar("T")
R = TypeVar("R")
Snapshot = Callable[[Path], dict[str, str]]

TWO_BITS = Recipe(name="two", rules=(Rule(codec=Quantized(bits=2)),))


def refusal(error: type[DersError], *arguments: Any, **options: Any) -> str:
    """The one sentence with which `compress` refuses; nothing may stand at `out` that did not."""
    out = Path(arguments[1])
    existed = out.exists()
    with pytest.raises(error) as caught:
        compress(*arguments, **options)
    assert out.exists() == existed
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_inputs_and_the_neighbourhood_stay_untouched(
    mixtral_dir: Path, mix: Recipe, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(mixtral_dir)
    compress(mixtral_dir, tmp_path / "new" / "out", mix)
    assert snapshot(mixtral_dir) == before
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out"]


def test_the_packed_directory(packed_dir: Path, mixtral_dir: Path) -> None:
    names = {file.name for file in packed_dir.iterdir()}
    assert names == {file.name for file in mixtral_dir.iterdir()} | {"ders_manifest.json"}
    packed = PackedCheckpoint(packed_dir)
    quantization = packed.store.config["quantization_config"]
    assert quantization["quant_method"] == "ders"
    assert quantization["format_version"] == 2
    assert quantization["name"] == "mix"
    assert quantization["rules"][0] == {"codec": "quantized", "bits": 3, "group_size": 32}
    for name in ("tokenizer.json", "generation_config.json"):
        assert (packed_dir / name).read_bytes() == (mixtral_dir / name).read_bytes()
    text = (packed_dir / "ders_manifest.json").read_text()
    assert str(mixtral_dir.parent) not in text


def test_report_round_trip(mixtral_dir: Path, tmp_path: Path) -> None:
    report = compress(mixtral_dir, tmp_path / "out", TWO_BITS)
    assert Report.from_dict(report.to_dict()) == report
    assert all(0.3 < entry.rel_error_delta < 0.4 for entry in report.entries)
    assert all(0.01 < entry.rel_error_weight < 0.1 for entry in report.entries)
    assert report.device == "cpu"


# the same bytes


def shuffled(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    order = list(items)
    random.Random(3).shuffle(order)
    return map(function, order)


def pooled(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()


@pytest.mark.parametrize("run", [shuffled, pooled])
def test_same_bytes_whatever_runs_it(
    run: Any, mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    compress(mixtral_dir, tmp_path / "out", mix, run=run)
    assert snapshot(tmp_path / "out") == snapshot(packed_dir)


def test_same_bytes_however_many_threads(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        compress(mixtral_dir, tmp_path / "out", mix)
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)
    assert snapshot(tmp_path / "out") == snapshot(packed_dir)


def test_tasks_compute_on_one_thread(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrices here are too small for threads to split a sum, so look at the setting itself."""
    seen: set[int] = set()
    encode = encode_module._encode

    def spy(*arguments: Any) -> Any:
        seen.add(torch.get_num_threads())
        return encode(*arguments)

    monkeypatch.setattr(encode_module, "_encode", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        compress(mixtral_dir, tmp_path / "out", TWO_BITS)
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_another_seed_gives_other_bytes(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    compress(mixtral_dir, tmp_path / "out", mix.model_copy(update={"seed": 12}))
    file = "model.safetensors"
    assert snapshot(tmp_path / "out")[file] != snapshot(packed_dir)[file]


class Steps:
    """A progress callback that counts, checks what it is told, and may stop the work."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[int, int, str]] = []
        self.stop_at = stop_at

    def __call__(self, done: int, total: int, message: str) -> None:
        if self.calls:
            assert done >= self.calls[-1][0]
            assert total == self.calls[-1][1]
        assert 0 <= done <= total
        assert message
        self.calls.append((done, total, message))
        if len(self.calls) == self.stop_at:
            raise Cancelled("stopped by the test")


def test_progress_reaches_its_total(mixtral_dir: Path, mix: Recipe, tmp_path: Path) -> None:
    steps = Steps()
    compress(mixtral_dir, tmp_path / "out", mix, progress=steps)
    done, total, _ = steps.calls[-1]
    assert done == total
    assert sum("encoded" in message for _, _, message in steps.calls) == 5  # the sixth is kept
    assert any("writing" in message for _, _, message in steps.calls)


@pytest.mark.parametrize("stop_at", [1, 2, 4, 6, 7, 12, 30])
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

    with pytest.raises(RuntimeError, match="a worker died"):
        compress(mixtral_dir, out, mix, run=breaks)
    assert not out.exists()
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)


CHILD = """
import sys, time
from pathlib import Path
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe

source, out, recipe, word = sys.argv[1:]
seen = 0

def progress(done, total, message):
    global seen
    seen += word in message
    if seen == 3:
        print("holding", flush=True)
        time.sleep(600)

compress(source, out, Recipe.from_yaml(Path(recipe).read_text()), progress=progress)
"""


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
    out, recipe = tmp_path / "place" / "out", tmp_path / "mix.yaml"
    recipe.write_text(mix.to_yaml())
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(mixtral_dir), str(out), str(recipe), word],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "holding\n"
            for resume in (False, True):
                message = refusal(OutputError, mixtral_dir, out, mix, resume=resume)
                assert "another process" in message
        finally:
            child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    assert "--resume" in refusal(OutputError, mixtral_dir, out, mix)
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)
    assert [file.name for file in out.parent.iterdir()] == ["out"]


def test_a_staged_group_that_the_machine_lost_is_encoded_again(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    """What is staged is not synced; its checksums are looked at before it is used."""

    def stop(done: int, total: int, message: str) -> None:
        if message.startswith("writing"):
            raise Cancelled("stopped")

    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, mix, progress=stop)
    staged = sorted((tmp_path / "out.partial" / ".ders-groups").glob("*.safetensors"))[0]
    damaged = bytearray(staged.read_bytes())
    damaged[-1] ^= 1
    staged.write_bytes(damaged)
    with pytest.raises(OutputError, match=r"was damaged after it was written.*resume"):
        compress(mixtral_dir, out, mix, resume=True)
    assert not out.exists()
    compress(mixtral_dir, out, mix, resume=True)
    assert snapshot(out) == snapshot(packed_dir)


# refusals


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_existing_output_is_refused(kind: str, mixtral_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    for resume in (False, True):
        assert "exists already" in refusal(OutputError, mixtral_dir, out, TWO_BITS, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_is_not_taken_for_another(
    mixtral_dir: Path, qwen2_moe_dir: Path, mix: Recipe, tmp_path: Path, snapshot: Snapshot
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress(mixtral_dir, out, mix, progress=Steps(3))
    left = snapshot(partial_path(out))
    assert "--resume" in refusal(OutputError, mixtral_dir, out, mix)
    for source, recipe in (
        (mixtral_dir, TWO_BITS),
        (mixtral_dir, mix.model_copy(update={"seed": 99})),
        (mixtral_dir, mix.model_copy(update={"name": "other"})),
        (qwen2_moe_dir, Recipe(name="mix", seed=11, rules=mix.rules[:1])),
    ):
        message = refusal(OutputError, source, out, recipe, resume=True)
        assert "another checkpoint or recipe" in message
    assert snapshot(partial_path(out)) == left


def test_a_partial_directory_of_unknown_origin_is_refused(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("x")
    refusal(OutputError, mixtral_dir, tmp_path / "out", TWO_BITS)
    refusal(OutputError, mixtral_dir, tmp_path / "out", TWO_BITS, resume=True)
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


def test_side_files_of_any_name_are_copied(mixtral_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    names = ["state.json", "groups", "README.md", "tokenizer.model", "merges.txt", "x.tmp"]
    for name in names:
        (source / name).write_text(f"this is {name}")
    compress(source, tmp_path / "out", TWO_BITS)
    for name in names:
        assert (tmp_path / "out" / name).read_text() == f"this is {name}"


def test_a_layer_that_is_not_there_writes_nothing(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="x", rules=(Rule(layers="9", codec=Quantized(bits=2)),))
    refusal(RecipeError, mixtral_dir, tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_writes_nothing(mixtral_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    shard = source / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refusal(CheckpointError, source, tmp_path / "out", TWO_BITS)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


BAD = "model.layers.1.block_sparse_moe.experts.2.w3.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_refused_by_name(
    value: float, mixtral_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[BAD][5, 7] = value
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    for codec in (Quantized(bits=2), Sparse(drop_rate=0.9, method="magnitude")):
        recipe = Recipe(name="x", rules=(Rule(codec=codec),))
        out = tmp_path / codec.name
        message = refusal(CheckpointError, source, out, recipe)
        assert BAD in message
        assert "keep" in message
    kept = Recipe(
        name="x", rules=(*recipe.rules, Rule(layers="1", projections=("up",), codec=Keep()))
    )
    compress(source, tmp_path / "kept", kept)


def test_values_too_large_for_their_dtype_are_refused_by_name(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[BAD][5, 7] = 3e38
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    recipe = Recipe(name="x", rules=(Rule(codec=Sparse(drop_rate=0.0)),))
    compress(source, tmp_path / "fits", recipe)
    rescaled = Recipe(name="x", seed=1, rules=(Rule(codec=Quantized(bits=1, group_size=1)),))
    tensors[BAD.replace(".2.", ".0.")][5, 7] = -3e38
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    message = refusal(CheckpointError, source, tmp_path / "out", rescaled)
    assert "too large" in message
    assert "experts." in message


# dense parent


def test_a_dense_parent_is_the_base(
    mixtral_dir: Path, dense_parent_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(dense_parent_dir)
    recipe = Recipe(
        name="dense", base=DenseBase(dense=dense_parent_dir), rules=(Rule(codec=Quantized(bits=4)),)
    )
    compress(mixtral_dir, tmp_path / "out", recipe)
    assert snapshot(dense_parent_dir) == before
    parent = load_file(dense_parent_dir / "model.safetensors")
    packed = PackedCheckpoint(tmp_path / "out")
    assert len(packed.manifest.groups) == 6
    for group in packed.manifest.groups:
        name = f"model.layers.{group.layer}.mlp.{group.projection}_proj.weight"
        assert torch.equal(packed.experts.base(group), parent[name])
    for file in ("ders_manifest.json", "config.json"):
        assert str(dense_parent_dir.parent) not in (tmp_path / "out" / file).read_text()
    assert packed.manifest.recipe["base"] == {"dense": "parent"}


@pytest.mark.parametrize("wrong", ["random", "shape", "missing", "nan"])
def test_a_wrong_parent_is_refused(
    wrong: str, mixtral_dir: Path, dense_parent_dir: Path, tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(dense_parent_dir, tmp_path / "wrong-parent"))
    tensors = load_file(parent / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if wrong == "random":
        tensors[name] = torch.randn(112, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    elif wrong == "shape":
        tensors[name] = tensors[name][:100].clone()
    elif wrong == "nan":
        tensors[name][3, 3] = float("nan")
    else:
        del tensors[name]
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    recipe = Recipe(name="d", base=DenseBase(dense=parent), rules=TWO_BITS.rules)
    message = refusal(CheckpointError, mixtral_dir, tmp_path / "out", recipe)
    assert "parent" in message
    assert "wrong-parent" in message


def test_a_parent_that_does_not_exist(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="d", base=DenseBase(dense=tmp_path / "gone"), rules=TWO_BITS.rules)
    message = refusal(CheckpointError, mixtral_dir, tmp_path / "out", recipe)
    assert "gone does not exist" in message


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
    refusal(OutputError, mixtral_dir, tmp_path / "out", recipe, resume=True)


# the disk


@pytest.mark.parametrize(
    "where",
    [
        "00000-gate.safetensors",
        "00001-down.json",
        "model.safetensors",
        "config.json",
        "ders_manifest.json",
        "side files",
    ],
)
def test_a_full_disk_is_one_sentence_and_no_output(
    where: str,
    mixtral_dir: Path,
    mix: Recipe,
    packed_dir: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """/dev/full makes the kernel itself say that no space is left, at each place that writes."""
    out = tmp_path / "out"

    def open_full(path: Path, mode: str, **options: Any) -> Any:
        full = Path(path).name.removeprefix(".").startswith(where)  # written aside
        return open("/dev/full" if full else path, mode, **options)

    def copy_full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ders_core.files.writer.open", open_full, raising=False)
        patch.setattr("ders_core.files.aside.os.fsync", lambda handle: None)
        if where == "side files":
            patch.setattr("ders_core.files.output.shutil.copyfile", copy_full)
        message = refusal(OutputError, mixtral_dir, out, mix)
    assert "full" in message
    assert str(out) in message
    compress(mixtral_dir, out, mix, resume=True)  # after space was made
    assert snapshot(out) == snapshot(packed_dir)


def test_too_little_room_is_seen_before_anything_is_written(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("ders_core.files.output.shutil.disk_usage", lambda path: usage)
    message = refusal(OutputError, mixtral_dir, tmp_path / "out", TWO_BITS)
    assert "0.0001 GB are free" in message


def test_a_place_that_cannot_be_written(mixtral_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = refusal(OutputError, mixtral_dir, tmp_path / "file" / "out", TWO_BITS)
    assert str(tmp_path / "file") in message


def test_presets_all_name_what_they_do(mixtral_dir: Path, tmp_path: Path) -> None:
    """Ordered by strength as the codecs promise: more bits, less error."""
    errors = {
        name: compress(mixtral_dir, tmp_path / name, presets()[name]).entries[2].rel_error_delta
        for name in ("keep", "quantized-4bit", "quantized-2bit", "quantized-1bit", "sparse-drop0.9")
    }
    assert list(errors.values()) == sorted(errors.values())
    assert errors["keep"] == 0
    assert errors["sparse-drop0.9"] == pytest.approx(3, rel=0.02)  # √(p/(1 − p))
