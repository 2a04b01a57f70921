"""Synthesize: the layout that came in, bit for bit where nothing was replaced."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from weakref import finalize

import pytest
import torch
from support.messages import raises_saying

from ders_core.compute.threads import threads_of_torch
from ders_core.errors import Cancelled, CheckpointError, OutputError
from ders_core.packed.assembler import Assembler
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.original_form import OriginalForm
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, presets

Snapshot = Callable[[Path], dict[str, str]]
Tensors = Callable[[Path], dict[str, torch.Tensor]]
FAMILIES = ["mixtral_dir", "mixtral_sharded_dir", "qwen2_moe_dir", "qwen2_moe_sharded_dir"]


@pytest.mark.parametrize("directory", [*FAMILIES, "scratch_dir"])
def test_keep_comes_back_bit_for_bit(
    directory: str, tmp_path: Path, snapshot: Snapshot, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(directory)
    compress(source, tmp_path / "packed", presets()["keep"])
    synthesize(tmp_path / "packed", tmp_path / "back")
    before, after = snapshot(source), snapshot(tmp_path / "back")
    assert before == after
    assert open_checkpoint(tmp_path / "back").identity == open_checkpoint(source).identity


@pytest.mark.parametrize("directory", FAMILIES)
def test_the_layout_is_the_originals(
    directory: str,
    mix: Recipe,
    tmp_path: Path,
    snapshot: Snapshot,
    all_tensors: Tensors,
    request: pytest.FixtureRequest,
) -> None:
    source: Path = request.getfixturevalue(directory)
    compress(source, tmp_path / "packed", mix)
    packed = snapshot(tmp_path / "packed")
    sums = synthesize(tmp_path / "packed", tmp_path / "back")
    assert snapshot(tmp_path / "packed") == packed
    back, original = open_checkpoint(tmp_path / "back"), open_checkpoint(source)
    assert back.store.files == original.store.files  # names, shards, and the order on disk
    assert back.store.metadata == original.store.metadata
    assert {n: t.spec for n, t in back.tensors.items()} == {
        n: t.spec for n, t in original.tensors.items()
    }
    assert sums.keys() == back.tensors.keys()
    some = synthesize(tmp_path / "packed", tmp_path / "again", hashes=False)
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "back")
    made = set(PackedCheckpoint(tmp_path / "packed").original.assembler.tensors)
    assert some == {name: sums[name] for name in sums.keys() - made}
    config = (source / "config.json").read_text()
    assert list(json.loads(config).items()) == list(back.config.items())
    for file in original.beside.files:
        assert (tmp_path / "back" / file.name).read_bytes() == file.path.read_bytes()
    assert {f.name for f in (tmp_path / "back").iterdir()} == {f.name for f in source.iterdir()}
    before, after = all_tensors(source), all_tensors(tmp_path / "back")
    replaced = {name for group in original.groups() for name in group.sources}
    kept = {name for name in replaced if name in original.group(0, "down").sources}
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        assert same == (name not in replaced or name in kept), name


@pytest.mark.parametrize("directory", FAMILIES)
def test_transformers_loads_it(
    directory: str, mix: Recipe, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: Path = request.getfixturevalue(directory)
    for recipe in (presets()["keep"], mix):
        compress(source, tmp_path / recipe.name, recipe)
        synthesize(tmp_path / recipe.name, tmp_path / f"{recipe.name}-back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "keep-back")
    tokens = torch.tensor([tokenizer("The river runs past the mill.")["input_ids"]])
    logits = {}
    for name, path in (
        ("original", source),
        ("keep", tmp_path / "keep-back"),
        ("mix", tmp_path / "mix-back"),
    ):
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
        assert model.dtype is torch.bfloat16
        with torch.inference_mode():
            logits[name] = model(tokens).logits.double()
    assert torch.equal(logits["keep"], logits["original"])
    difference = (logits["mix"] - logits["original"]).norm() / logits["original"].norm()
    assert 0 < float(difference) < 0.5


def test_what_is_written_is_what_is_read(
    packed_dir: Path, tmp_path: Path, all_tensors: Tensors
) -> None:
    synthesize(packed_dir, tmp_path / "back")
    packed = PackedCheckpoint(packed_dir)
    written = all_tensors(tmp_path / "back")
    assert sorted(packed.original.names()) == sorted(written)
    for name, tensor in written.items():
        assert torch.equal(packed.original.read(name), tensor)


def test_an_existing_output_is_refused(packed_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    with raises_saying(OutputError, tmp_path / "back", "exists"):
        synthesize(packed_dir, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


@pytest.mark.parametrize("stop_at", [1, 10, 60])
def test_an_interruption_leaves_nothing(packed_dir: Path, tmp_path: Path, stop_at: int) -> None:
    calls = 0

    def stop(done: int, total: int, message: str) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        synthesize(packed_dir, tmp_path / "back", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_its_total(packed_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesize(packed_dir, tmp_path / "back", progress=lambda d, t, m: seen.append((d, t)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_few_pieces_are_in_memory_at_once(
    packed_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """One that is written, and one for each thread."""
    alive, most, made = set[int](), 0, Assembler.piece

    def counted(assembler: Assembler, name: str, number: int, device: str) -> torch.Tensor:
        nonlocal most
        piece = made(assembler, name, number, device).clone()
        memory = piece.untyped_storage()
        alive.add(key := memory.data_ptr())
        finalize(piece, alive.discard, key)
        most = max(most, len(alive))
        return piece

    monkeypatch.setattr(Assembler, "piece", counted)
    monkeypatch.setattr(OriginalForm, "check", lambda *_: time.sleep(0.02))  # a slow disk
    with threads_of_torch(threads):
        synthesize(packed_dir, tmp_path / "out")
    assert most == threads + 1


def test_an_original_is_not_packed(mixtral_dir: Path, tmp_path: Path) -> None:
    with raises_saying(CheckpointError, mixtral_dir, "not packed", "ders_manifest.json"):
        synthesize(mixtral_dir, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []
