"""Patches: deltas that travel alone, come back byte for byte, and are refused on any other base."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ders_core.codecs import Keep, LowRank, Quantized, Sparse
from ders_core.errors import Cancelled, CheckpointError, DersError, OutputError
from ders_core.files.store import TensorStore
from ders_core.packed.patch import apply_patch, make_patch, patch_problems, rollback
from ders_core.packed.patch.describe import describe, tensor_checksums
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.verify import verify
from ders_core.recipe import DenseBase, Recipe, Rule

FOUR = Recipe(name="four", rules=(Rule(codec=Quantized(bits=4)),))
MIXED = Recipe(
    name="mixed",
    seed=3,
    rules=(
        Rule(codec=Sparse(drop_rate=0.9)),
        Rule(codec=LowRank(rank=2), projections=("down",)),
        Rule(codec=Quantized(bits=2), layers="1", projections=("up",)),
    ),
)


def files(directory: Path) -> dict[str, bytes]:
    """Everything below a directory but the way back and the model card of a patch."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "ders_rollback" not in path.parts
    }


@pytest.fixture(scope="module")
def packed(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("patch")
    compress(mixtral_dir, place / "mixed", MIXED)
    return place / "mixed"


@pytest.fixture(scope="module")
def other(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run of the same checkpoint: the same bases, other deltas."""
    place = tmp_path_factory.mktemp("other")
    compress(mixtral_dir, place / "four", FOUR)
    return place / "four"


def test_deltas_alone_travel(packed: Path, tmp_path: Path) -> None:
    result = export(packed, tmp_path / "patch", "patch")
    checkpoint = PackedCheckpoint(packed)
    deltas = {
        f"{group.prefix}.{part}": info
        for group in checkpoint.manifest.groups
        for name, info in checkpoint.store.tensors.items()
        for part in [name.removeprefix(f"{group.prefix}.")]
        if name.startswith(f"{group.prefix}.") and part != "base"
    }
    travelled = load_file(tmp_path / "patch" / "patch.safetensors")
    assert travelled.keys() == deltas.keys()
    assert result.bytes == sum(info.nbytes for info in deltas.values())
    assert all(check.ok for check in result.checks)
    assert 0 < result.bytes < checkpoint.bytes_total / 2


@pytest.mark.parametrize("told", [False, True])
def test_another_run_of_the_same_checkpoint_is_a_base(
    packed: Path, other: Path, tmp_path: Path, told: bool
) -> None:
    """What comes of it is what was exported, byte for byte; the way back gives the base again."""
    before = files(other)
    export(packed, tmp_path / "patch", "patch", base=other if told else None)
    done = apply_patch(other, tmp_path / "patch", tmp_path / "out")
    assert files(tmp_path / "out") == files(packed)
    assert verify(tmp_path / "out").ok
    assert done.kept > 0
    shutil.rmtree(tmp_path / "patch")
    rollback(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == before == files(other)


def test_the_dense_parent_is_a_base(
    mixtral_dir: Path, dense_parent_dir: Path, tmp_path: Path
) -> None:
    """Its FFN is the base of every layer, its attention and embeddings are the model's too: what
    travels beside the deltas is the router alone."""
    recipe = Recipe(
        name="dense", base=DenseBase(dense=dense_parent_dir), rules=(Rule(codec=Quantized(bits=4)),)
    )
    compress(mixtral_dir, tmp_path / "packed", recipe)
    before = files(dense_parent_dir)
    export(tmp_path / "packed", tmp_path / "patch", "patch", base=dense_parent_dir)
    names = load_file(tmp_path / "patch" / "patch.safetensors").keys()
    assert {name for name in names if ".ders." not in name} == {
        f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)
    }
    assert not [name for name in names if name.endswith(".base")]
    apply_patch(dense_parent_dir, tmp_path / "patch", tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "packed")
    assert verify(tmp_path / "out", mixtral_dir).ok
    rollback(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == before == files(dense_parent_dir)


def test_shards(
    mixtral_sharded_dir: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.files.writer.shards.__defaults__", (100_000,))
    compress(mixtral_sharded_dir, tmp_path / "packed", MIXED)
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 1
    export(tmp_path / "packed", tmp_path / "patch", "patch", base=other)
    apply_patch(other, tmp_path / "patch", tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "packed")
    rollback(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == files(other)


def test_nothing_may_travel(mixtral_dir: Path, packed: Path, tmp_path: Path) -> None:
    """A base that holds everything: the patch describes it and holds no tensor."""
    result = export(packed, tmp_path / "patch", "patch", base=packed)
    assert result.bytes == 0
    apply_patch(packed, tmp_path / "patch", tmp_path / "out")
    assert files(tmp_path / "out") == files(packed)
    kept = Recipe(name="keep", rules=(Rule(codec=Keep()),))
    compress(mixtral_dir, tmp_path / "kept", kept)
    assert export(tmp_path / "kept", tmp_path / "none", "patch").bytes == 0


def refused(error: type[DersError], words: str, action: Callable[[], Any], out: Path) -> None:
    with pytest.raises(error, match=words) as caught:
        action()
    assert "\n" not in str(caught.value)
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
    for wrong, words in (
        (qwen2_moe_dir, "not the base of this patch.*same bases"),
        (dense_parent_dir, "not the base of this patch.*same bases"),
        (changed, f"not the base of this patch: it lacks '{name}'"),
    ):
        refused(
            CheckpointError,
            words,
            lambda wrong=wrong: apply_patch(wrong, tmp_path / "patch", out),
            out,
        )


def test_a_damaged_patch_is_refused(packed: Path, other: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "patch", "patch")
    weights = tmp_path / "patch" / "patch.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    out = tmp_path / "out"
    refused(
        CheckpointError,
        "missing or damaged; copy the patch again",
        lambda: apply_patch(other, tmp_path / "patch", out),
        out,
    )
    weights.unlink()
    refused(
        CheckpointError,
        "missing or damaged",
        lambda: apply_patch(other, tmp_path / "patch", out),
        out,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(files={"../x.safetensors": [*m["pieces"]]}), "contradicts"),
        (lambda m: m.update(format_version=9), "format version 9"),
        (lambda m: m.update(kind="rollback"), "contradicts"),
        (lambda m: m["files"]["model.safetensors"].pop(), "contradicts"),
        (lambda m: m.pop("pieces"), "pieces"),
        (lambda m: next(iter(m["pieces"].values())).update(dtype="F7"), "contradicts"),
    ],
)
def test_a_tampered_manifest_is_refused(
    packed: Path, other: Path, tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    export(packed, tmp_path / "patch", "patch")
    file = tmp_path / "patch" / "ders_patch.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    out = tmp_path / "out"
    refused(CheckpointError, words, lambda: apply_patch(other, tmp_path / "patch", out), out)


def flip(name: str) -> Callable[[Path], Any]:
    """Turn one bit of a file."""

    def change(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[len(data) // 2] ^= 1
        (directory / name).write_bytes(data)

    return change


def retold(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
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

    return retold(change)


def refiled(new: str) -> Callable[[Path], Any]:
    return retold(lambda m: m.update(files={new: list(m["pieces"])}))


def planted(name: str) -> Callable[[Path], Any]:
    """Lay a file among the side files, and name it with its true checksum."""

    def change(directory: Path) -> None:
        file = directory / "files" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"{}")
        told = {name: hashlib.sha256(b"{}").hexdigest()}
        retold(lambda m: m["side"].update(told))(directory)

    return change


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no side files": lambda directory: shutil.rmtree(directory / "files"),
    "no config": lambda directory: (directory / "files" / "config.json").unlink(),
    "another config": flip("files/config.json"),
    "another packed manifest": flip("files/ders_manifest.json"),
    "a side file that is a directory": lambda directory: (
        (directory / "files" / "config.json").unlink(),
        (directory / "files" / "config.json").mkdir(),
    ),
    "side file elsewhere": planted("sub/x"),
    "side file that is a pickle": planted("pytorch_model.bin"),
    "side file that is a patch": planted("ders_patch.json"),
    "side file in the way": planted("ders_rollback"),
    "hidden side file": planted(".bashrc"),
    "side without config": retold(lambda m: m["side"].pop("config.json")),
    "file with a NUL": refiled("a\0.safetensors"),
    "file that is no text": refiled("\ud800.safetensors"),
    "file with a long name": refiled(f"{'a' * 300}.safetensors"),
    "tensor that is no text": renamed("\ud800"),
    "tensor named as a header's word": renamed("__metadata__"),
    "tensor with another name": renamed("another\nname"),
    "metadata that is no text": retold(lambda m: m.update(metadata={"x": {"\ud800": ""}})),
    "a line break in a key": retold(lambda m: m["pieces"].update({"x\ny": {"dtype": 1}})),
    "a field too many": retold(lambda m: m.update(more=1)),
    "a negative shape": retold(lambda m: next(iter(m["pieces"].values())).update(shape=[-1, -1])),
}


TOLD = r"damaged|contradicts itself|ders_patch\.json: |cannot be written|not the base of this patch"


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
    patch, done = tmp_path / "hurt" / "patch", tmp_path / "hurt" / "out"
    DAMAGES[damage](patch)
    DAMAGES[damage](done / "ders_rollback")
    refused(DersError, TOLD, lambda: apply_patch(other, patch, out), out)
    refused(DersError, TOLD, lambda: rollback(done, out), out)


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
    refused(
        CheckpointError,
        f"no checksum of '{name}'",
        lambda: export(tmp_path / "packed", out, "patch"),
        out,
    )


def test_the_card_names_the_base(packed: Path, other: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "certain", "patch", base=other)
    export(packed, tmp_path / "any", "patch")
    certain = (tmp_path / "certain" / "README.md").read_text("utf-8")
    assert f"{other.name} (`{TensorStore.open(other).identity[:16]}`)" in certain
    assert "any with the same bases, packed" in (tmp_path / "any" / "README.md").read_text("utf-8")


CONTENTS = st.tuples(
    st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64]),
    st.sampled_from([(), (0,), (3,), (2, 3), (3, 2)]),
    st.integers(0, 2),
)
DIRECTORIES = st.lists(  # of files, each of tensors by name
    st.dictionaries(st.sampled_from("abcdefgh"), CONTENTS, max_size=4), min_size=1, max_size=3
)


def directory_of(place: Path, parts: list[Any], word: str) -> Path:
    """A model directory as others write it: safetensors files by safetensors itself."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"word": word}))
    (place / "notes.txt").write_text(word)
    for number, part in enumerate(parts):
        tensors = {
            f"{number}.{name}": torch.full(shape, value).to(dtype)
            for name, (dtype, shape, value) in part.items()
        }
        save_file(tensors, place / f"part{number}.safetensors", {"format": word})
    return place


@settings(max_examples=25, deadline=None)
@given(base=DIRECTORIES, result=DIRECTORIES)
def test_any_two_directories(
    tmp_path_factory: pytest.TempPathFactory, base: list[Any], result: list[Any]
) -> None:
    """Whatever two directories hold, there and back is byte for byte; what travels is what the
    other one does not hold, by a count with safetensors and hashlib alone."""
    place = tmp_path_factory.mktemp("two")
    before = directory_of(place / "base", base, "before")
    after = directory_of(place / "result", result, "after")

    def contents(directory: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
        return {
            name: (
                str(tensor.dtype),
                tuple(tensor.shape),
                hashlib.sha256(bytes(tensor.reshape(-1).view(torch.uint8).tolist())).hexdigest(),
            )
            for file in directory.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }

    (store, held), (target, wanted) = (
        (TensorStore.open(directory), contents(directory)) for directory in (before, after)
    )
    sums = tensor_checksums(target.tensors, {}, lambda count, message: None)
    assert sums == {name: key[2] for name, key in wanted.items()}
    by_content = {key: name for name, key in held.items()}
    (place / "patch").mkdir()
    manifest = describe(
        place / "patch",
        target,
        sums,
        lambda name, key: by_content.get(wanted[name]),
        lambda count, message: None,
        kind="patch",
        base=store,
    )
    assert manifest.travelling.keys() == {
        name for name, key in wanted.items() if key not in by_content
    }
    done = apply_patch(before, place / "patch", place / "out")
    assert files(place / "out") == files(after)
    kept = {name for name, key in held.items() if key not in set(wanted.values())}
    assert done.kept == sum(store.tensors[name].nbytes for name in kept)
    shutil.rmtree(before)
    rollback(place / "out", place / "back")
    assert files(place / "back") == files(directory_of(before, base, "before"))


def test_what_is_no_patch_and_what_was_not_patched(
    packed: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused(CheckpointError, "is not a patch", lambda: apply_patch(other, packed, out), out)
    refused(CheckpointError, "was not patched", lambda: rollback(packed, out), out)
    export(packed, tmp_path / "patch", "patch")
    with pytest.raises(CheckpointError, match=r"is a patch and no model.*ders apply"):
        TensorStore.open(tmp_path / "patch")
    with pytest.raises(OutputError, match="exists"):
        apply_patch(other, tmp_path / "patch", tmp_path / "patch")
    with pytest.raises(OutputError, match="a base belongs to the format patch"):
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
    refused(
        CheckpointError, "cannot be rolled back", lambda: rollback(tmp_path / "applied", out), out
    )


def test_a_damaged_source_gives_no_patch(packed: Path, tmp_path: Path) -> None:
    source = tmp_path / "packed"
    shutil.copytree(packed, source)
    checkpoint = PackedCheckpoint(source)
    info = checkpoint.store.tensors[f"{checkpoint.manifest.groups[0].prefix}.values"]
    data = bytearray(info.file.read_bytes())
    data[info.begin] ^= 1
    info.file.write_bytes(data)
    out = tmp_path / "out"
    refused(CheckpointError, "is damaged", lambda: export(source, out, "patch"), out)


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
    refused(OutputError, "removed: .* differs", lambda: export(packed, out, "patch"), out)


@pytest.mark.parametrize("stop_at", [1, 5])
def test_an_interruption_leaves_nothing(
    packed: Path, other: Path, tmp_path: Path, stop_at: int
) -> None:
    export(packed, tmp_path / "patch", "patch")
    apply_patch(other, tmp_path / "patch", tmp_path / "applied")
    out = tmp_path / "out"
    calls = 0

    def stop(done: int, total: int, message: str) -> None:
        nonlocal calls
        calls += 1
        assert 0 <= done <= total
        if calls % stop_at == 0:
            raise Cancelled("stopped by the test")

    actions: list[Callable[[], Any]] = [
        lambda: export(packed, out, "patch", progress=stop),
        lambda: apply_patch(other, tmp_path / "patch", out, progress=stop),
        lambda: rollback(tmp_path / "applied", out, progress=stop),
    ]
    for action in actions:
        calls = 0
        refused(Cancelled, "stopped", action, out)


def test_a_killed_apply_leaves_no_output(packed: Path, other: Path, tmp_path: Path) -> None:
    """SIGKILL in the midst of writing; the next try succeeds."""
    export(packed, tmp_path / "patch", "patch")
    out = tmp_path / "out"
    program = (
        "import sys, time\n"
        "from ders_core.packed.patch import apply_patch\n"
        "def slow(done, total, message):\n"
        "    print(message, flush=True)\n"
        "    time.sleep(0.2)\n"
        "apply_patch(*sys.argv[1:4], progress=slow)\n"
    )
    command = [sys.executable, "-c", program, str(other), str(tmp_path / "patch"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "writing" in process.stdout.readline()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    apply_patch(other, tmp_path / "patch", out)
    assert files(out) == files(packed)
