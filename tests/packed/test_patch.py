"""Patches: deltas that travel alone and come back byte for byte."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.held_process import held
from support.patched_checkpoints import MIXED, files

from ders_core.codecs import Keep, Quantized
from ders_core.errors import Cancelled
from ders_core.files.model_files import INDEX
from ders_core.files.store import TensorStore
from ders_core.files.writer import filled
from ders_core.packed.patch import apply_patch, rollback
from ders_core.packed.patch.describe import describe, tensor_checksums
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.verify import verify
from ders_core.recipe import DenseBase, Recipe, Rule


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


@pytest.mark.parametrize("named", [False, True])
def test_another_run_of_the_same_checkpoint_is_a_base(
    packed: Path, other: Path, tmp_path: Path, named: bool
) -> None:
    """What comes of it is what was exported, byte for byte; the way back gives the base again."""
    before = files(other)
    export(packed, tmp_path / "patch", "patch", base=other if named else None)
    applied = apply_patch(other, tmp_path / "patch", tmp_path / "out")
    assert files(tmp_path / "out") == files(packed)
    assert verify(tmp_path / "out").ok
    assert applied.kept > 0
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
    cut = partial(filled, max_bytes=100_000)
    monkeypatch.setattr("ders_core.pipeline.arrangement.filled", cut)
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


def test_the_card_names_the_base(packed: Path, other: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "certain", "patch", base=other)
    export(packed, tmp_path / "any", "patch")
    certain = (tmp_path / "certain" / "README.md").read_text("utf-8")
    assert f"{other.name} (`{TensorStore.open(other).identity[:16]}`)" in certain
    assert "same bases" in (tmp_path / "any" / "README.md").read_text("utf-8")


CONTENTS = st.tuples(
    st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64]),
    st.sampled_from([(), (0,), (3,), (2, 3), (3, 2)]),
    st.integers(0, 2),
)


DIRECTORIES = st.lists(  # of files, each of tensors by name
    st.dictionaries(st.sampled_from("abcdefgh"), CONTENTS, min_size=1, max_size=4),
    min_size=1,
    max_size=3,
)


def directory_of(place: Path, parts: list[Any], word: str) -> Path:
    """A model directory as others write it: safetensors files by safetensors itself."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"word": word}))
    (place / "notes.txt").write_text(word)
    held: dict[str, str] = {}
    for number, part in enumerate(parts):
        tensors = {
            f"{number}.{name}": torch.full(shape, value).to(dtype)
            for name, (dtype, shape, value) in part.items()
        }
        save_file(tensors, place / f"part{number}.safetensors", {"format": word})
        held |= dict.fromkeys(tensors, f"part{number}.safetensors")
    (place / INDEX).write_text(json.dumps({"weight_map": held}))
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
    applied = apply_patch(before, place / "patch", place / "out")
    assert files(place / "out") == files(after)
    kept = {name for name, key in held.items() if key not in set(wanted.values())}
    assert applied.kept == sum(store.tensors[name].nbytes for name in kept)
    shutil.rmtree(before)
    rollback(place / "out", place / "back")
    assert files(place / "back") == files(directory_of(before, base, "before"))


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
        with pytest.raises(Cancelled):
            action()
        assert not list(tmp_path.glob("out*"))


def test_a_killed_apply_leaves_no_output(packed: Path, other: Path, tmp_path: Path) -> None:
    """SIGKILL in the midst of writing; the next try succeeds."""
    export(packed, tmp_path / "patch", "patch")
    out = tmp_path / "out"
    with held(apply_patch, other, tmp_path / "patch", out, word="writing", times=2):
        assert not out.exists()
    assert not out.exists()
    apply_patch(other, tmp_path / "patch", out)
    assert files(out) == files(packed)
