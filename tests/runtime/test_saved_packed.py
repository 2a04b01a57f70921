"""A model with packed experts is saved as a packed checkpoint, with what was trained beside."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.messages import raises_saying
from support.moe_families import Family, family_of
from support.packed_checkpoints import Snapshot, all_tensors, snapshot
from transformers import PreTrainedModel

from ders_core.codecs import Lossless, LowRank, Quantized, Sparse
from ders_core.errors import CheckpointError, DersError, OutputError
from ders_core.hf import load_model
from ders_core.hf.plugin import experts_held
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.writer import Written, write_packed
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.runtime.modes import Mode

__all__ = ["all_tensors", "snapshot"]

RECIPE = Recipe(
    name="saved",
    rules=(
        Rule(codec=Quantized(bits=2, group_size=16), projections=("gate",)),
        Rule(codec=LowRank(rank=3), projections=("up",)),
        Rule(codec=Sparse(drop_rate=0.5), layers="0", projections=("down",)),
        Rule(codec=Lossless(), layers="1", projections=("down",)),
    ),
    base_codec=(BaseRule(codec=Quantized(bits=6, group_size=16), projections=("gate",)),),
    others=(OtherRule(kinds=("attention",), codec=Quantized(bits=6, group_size=16)),),
)
HELD: tuple[Mode, ...] = ("packed", "cached")
IDS = torch.arange(3, 43)[None] % 90


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("saved") / "packed"
    compress(mixtral_dir, out, RECIPE)
    return out


def answer(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("mode", HELD)
def test_what_did_not_change_is_as_it_was(
    packed: Path,
    tmp_path: Path,
    mixtral_dir: Path,
    mode: Mode,
    all_tensors: Callable[[Path], dict[str, torch.Tensor]],
) -> None:
    """In whatever dtype the model computes: bytes are copied, not rounded."""
    model = load_model(packed, dtype=torch.float16, mode=mode)
    model.save_pretrained(tmp_path / "saved")
    before, after = all_tensors(packed), all_tensors(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = PackedCheckpoint(packed), PackedCheckpoint(tmp_path / "saved")
    assert first.manifest == second.manifest
    assert first.config == second.config
    assert verify(tmp_path / "saved", mixtral_dir).ok


def test_what_was_trained_is_written_as_it_is(packed: Path, tmp_path: Path) -> None:
    """A router, and a matrix of attention that was coded; the rest as before."""
    model = load_model(packed, dtype=torch.float32, mode="packed")
    layer = model.model.layers[1]
    optimizer = torch.optim.SGD([layer.mlp.gate.weight, layer.self_attn.q_proj.weight], lr=0.1)
    before = layer.mlp.gate.weight.detach().clone()
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert not torch.equal(layer.mlp.gate.weight, before)
    model.config.rope_theta_note = "set"
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    again = load_model(saved, dtype=torch.float32, mode="packed")
    held, loaded = model.state_dict(), again.state_dict()
    assert held.keys() == loaded.keys()
    assert all(torch.equal(held[name], loaded[name]) for name in held)
    assert torch.equal(answer(again), answer(model))
    assert again.config.rope_theta_note == "set"
    whole = load_model(saved, dtype=torch.float32)
    expected = load_model(packed, dtype=torch.float32)
    for first, second in zip(whole.model.layers, expected.model.layers, strict=True):
        assert torch.equal(first.mlp.experts.gate_up_proj, second.mlp.experts.gate_up_proj)
        assert torch.equal(first.mlp.experts.down_proj, second.mlp.experts.down_proj)
    stored = PackedCheckpoint(saved).store.tensors
    assert "model.layers.0.self_attn.q_proj.weight.ders.codes" in stored
    assert "model.layers.1.self_attn.q_proj.weight.ders.codes" not in stored
    assert not [name for name in stored if "layers.1.self_attn.q_proj" in name and "ders" in name]
    synthesize(saved, tmp_path / "back")
    assert verify(saved, tmp_path / "back").problems == ()


def test_a_trained_bias_leaves_its_group(tmp_path: Path) -> None:
    """GPT-OSS: biases of both projections lie in one tensor; other layers keep theirs."""
    family = family_of("gpt_oss")
    assert isinstance(family, Family)
    family.build().save_pretrained(tmp_path / "original")
    compress(tmp_path / "original", tmp_path / "packed", Recipe(name="b", rules=RECIPE.rules[:1]))
    with experts_held("packed"):
        model = family.model_class.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.gate_up_proj_bias.add_(0.1)
    model.save_pretrained(tmp_path / "saved")
    with experts_held("packed"):
        again = family.model_class.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    held, loaded = model.state_dict(), again.state_dict()
    assert held.keys() == loaded.keys()
    assert all(torch.equal(held[name], loaded[name]) for name in held)
    with torch.inference_mode():
        pair = [each(**family.inputs()).logits for each in (model, again)]
    assert torch.equal(*pair)
    groups = PackedCheckpoint(tmp_path / "saved").manifest.groups
    assert {group.layer for group in groups if not group.has_biases} == {1}


def test_it_is_whole_or_not_at_all(packed: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    """An empty directory is filled, one with files is not touched; and a source that was damaged
    since leaves nothing."""
    source = tmp_path / "packed"
    shutil.copytree(packed, source)
    model = load_model(source, mode="packed")
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert snapshot(tmp_path / "empty").keys() >= snapshot(packed).keys()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        model.save_pretrained(tmp_path / "full")
    assert snapshot(tmp_path / "full").keys() == {"notes.txt"}
    with pytest.raises(DersError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    weights = source / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError):
        model.save_pretrained(tmp_path / "late")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "packed"]


def test_what_others_write_meanwhile_stays(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    """A trainer writes into the directory while the model is saved there."""
    model = load_model(packed, mode="packed")

    def beside(*args: Any, **options: Any) -> Written:
        (tmp_path / "optimizer.pt").write_text("of a trainer")
        return write_packed(*args, **options)

    monkeypatch.setattr("ders_core.hf.resave.write_packed", beside)
    with raises_saying(OutputError, tmp_path / "optimizer.pt", "appeared"):
        model.save_pretrained(tmp_path)
    assert snapshot(tmp_path).keys() == {"optimizer.pt"}


def test_the_current_directory_is_filled(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    """And a name that no disk takes is refused in one sentence."""
    model = load_model(packed, mode="packed")
    monkeypatch.chdir(tmp_path)
    with raises_saying(OutputError, "cannot be written", "too long"):
        model.save_pretrained("x" * 300)
    model.save_pretrained(".")
    assert snapshot(Path.cwd()).keys() == snapshot(packed).keys()


def test_weights_that_the_model_does_not_have_are_refused(packed: Path, tmp_path: Path) -> None:
    """Those of the whole model, whose experts would not be read again; its own are written."""
    model = load_model(packed, dtype=torch.float32, mode="packed")
    whole = load_model(packed, dtype=torch.float32).state_dict()
    own = model.state_dict()
    norm = "model.norm.weight"
    for more in (whole, {**own, "mine": torch.ones(3)}):
        with raises_saying(DersError, "state_dict"):
            model.save_pretrained(tmp_path / "saved", state_dict=more)
        assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path / "saved", state_dict={norm: own[norm] + 1})
    again = load_model(tmp_path / "saved", dtype=torch.float32, mode="packed").state_dict()
    assert torch.equal(again[norm], own[norm] + 1)
    assert all(torch.equal(again[name], own[name]) for name in own if name != norm)


@pytest.mark.parametrize("mode", HELD)
def test_copies_compute_and_are_saved_and_pickles_are_refused(
    packed: Path, tmp_path: Path, mode: Mode, snapshot: Snapshot
) -> None:
    """A trained copy, as trainers make of a reference model, saves what it has itself."""
    model = load_model(packed, dtype=torch.float32, mode=mode)
    expected = answer(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    del model.model.layers[:]
    assert torch.equal(answer(copied), expected)
    copied.save_pretrained(tmp_path / "copied")
    assert snapshot(tmp_path / "copied") == snapshot(packed)
    for write in (pickle.dumps, lambda each: torch.save(each, tmp_path / "whole.pt")):
        with raises_saying(DersError, "pickled", "save_pretrained"):
            write(copied)


@pytest.mark.parametrize("mode", HELD)
def test_a_relative_source_is_found_from_elsewhere(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, snapshot: Snapshot
) -> None:
    monkeypatch.chdir(packed.parent)
    model = load_model(packed.name, mode=mode)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("saved")
    assert snapshot(tmp_path / "saved").keys() == snapshot(packed).keys()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_is_trained_and_saved_alone(packed: Path, tmp_path: Path) -> None:
    """PEFT's LoRA on attention: it learns, is saved, loaded on top again, and merged."""
    peft = pytest.importorskip("peft")
    model = load_model(packed, dtype=torch.float32, mode="packed")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = answer(model)
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, settings)
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    losses = []
    for _ in range(3):
        loss = tuned(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    expected = answer(tuned)
    assert not torch.equal(expected, start)
    tuned.save_pretrained(tmp_path / "adapter")
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 8
    fresh = load_model(packed, dtype=torch.float32, mode="packed")
    assert torch.equal(
        answer(peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")), expected
    )
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = load_model(tmp_path / "merged", dtype=torch.float32, mode="packed")
    assert torch.equal(answer(again), answer(merged))
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, before[name]) != ("q_proj" in name or "v_proj" in name), name
