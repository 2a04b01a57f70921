"""A repair: it is better, changes nothing but what was trained, and leaves a packed checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.repair_support import WINDOW, Repaired, biased_model, settings

from ders_core.codecs import Lossless, Quantized
from ders_core.codecs.coding import level_stream
from ders_core.evaluate import evaluate
from ders_core.files.store import TensorStore
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule
from ders_core.repair import TRAINABLE
from ders_core.repair.repairer import repair


def test_it_is_better_as_an_evaluation_finds_it(repaired: Repaired) -> None:
    result = repaired.result
    assert result.kl_after.mean < 0.9 * result.kl_before.mean
    assert result.change.low <= result.change.mean <= result.change.high < 0
    for packed, found in ((repaired.packed, result.before), (repaired.out, result.after)):
        quality = evaluate(
            packed,
            repaired.original,
            text=repaired.heldout,
            max_tokens=310,
            window=WINDOW,
            dtype=torch.float32,
        )
        assert found.tokens == quality.tokens == 310
        assert found.kl == pytest.approx(quality.kl, rel=1e-4)
        assert found.perplexity == pytest.approx(quality.perplexity, rel=1e-5)
        assert found.reference_perplexity == pytest.approx(quality.reference_perplexity, rel=1e-5)
        assert found.top1_agreement == pytest.approx(quality.top1_agreement)
    assert result.kl_before.mean == pytest.approx(result.before.kl)
    assert result.kl_after.mean == pytest.approx(result.after.kl)


def test_codes_and_the_rest_stay_byte_for_byte(repaired: Repaired) -> None:
    before, after = (
        {tensor.name: tensor for tensor in TensorStore.open(place).tensors.values()}
        for place in (repaired.packed, repaired.out)
    )
    assert before.keys() == after.keys()
    places = [
        {name: (each.begin, each.end, each.spec, each.file.name) for name, each in store.items()}
        for store in (before, after)
    ]
    assert places[0] == places[1]
    changed = {name for name in before if not torch.equal(before[name].read(), after[name].read())}
    words = ("scales", "tops", "offsets", "levels", "left", "right", "values", "stream", "base")
    for name in changed:
        assert name.endswith((*words, "norm.weight", "layernorm.weight", "gate.weight")), name
    kinds = {name.rpartition(".")[2] for name in changed}
    assert {"scales", "tops", "offsets", "left", "right", "values", "stream", "base"} <= kinds
    packed = PackedCheckpoint(repaired.packed)
    group = next(each for each in packed.manifest.groups if each.projection == "up")
    streams = [store[f"{group.prefix}.stream"].read() for store in (before, after)]
    shape, begin = (group.shape[1], group.shape[2]), 0
    for length in group.lengths["stream"]:
        pair = [
            level_stream.read(stream[begin : begin + length].clone(), shape) for stream in streams
        ]
        assert torch.equal(pair[0].numbers(), pair[1].numbers())
        assert (pair[0].levels != pair[1].levels).any()
        begin += length
    header = (repaired.packed / "model.safetensors").read_bytes()[:8]
    assert (repaired.out / "model.safetensors").read_bytes()[:8] == header


def test_inputs_stay_as_they_are(
    repaired: Repaired, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    assert {place: snapshot(place) for place in repaired.before} == repaired.before


def test_what_is_written_is_a_packed_checkpoint(repaired: Repaired, tmp_path: Path) -> None:
    assert verify(repaired.out).ok
    against = verify(repaired.out, repaired.original)
    assert against.problems == ()
    synthesize(repaired.out, tmp_path / "plain")
    plain, packed = load_model(tmp_path / "plain"), load_model(repaired.out)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, packed.state_dict()[name]), name
    assert open_checkpoint(repaired.out).num_experts == 4


def test_a_verification_sees_what_a_repair_did_not_do(repaired: Repaired, tmp_path: Path) -> None:
    """Tensors that were trained are not the original's, and are known; any other one is not."""
    manifest = json.loads((repaired.out / "ders_manifest.json").read_text())
    del manifest["repairs"]
    for file in repaired.out.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "ders_manifest.json").write_text(json.dumps(manifest))
    assert any("norm" in problem for problem in verify(tmp_path, repaired.original).problems)


def test_the_manifest_says_what_was_done(repaired: Repaired) -> None:
    manifest = PackedCheckpoint(repaired.out).manifest
    (note,) = manifest.repairs
    assert note.trained == dict(repaired.result.trained)
    assert set(note.trained) <= set(TRAINABLE)
    assert (note.texts, note.heldout) == (("train.txt",), ("heldout.txt",))
    assert note.kl_after == pytest.approx(repaired.result.kl_after.mean, rel=1e-5)
    assert note.kl_before == pytest.approx(repaired.result.kl_before.mean, rel=1e-5)
    original = load_file(repaired.original / "model.safetensors")
    assert note.replaced.keys() <= original.keys()
    before = PackedCheckpoint(repaired.packed).manifest
    assert "repairs" not in json.loads((repaired.packed / "ders_manifest.json").read_text())
    for prefix, encoded in manifest.encoded.items():
        assert encoded.sha256 == before.encoded[prefix].sha256
    assert manifest.encoded != before.encoded


def test_a_lossless_layer_keeps_its_biases(
    tokenizer: Any, repair_texts: tuple[Path, Path], tmp_path: Path
) -> None:
    """Those of the other layer are trained, and a verification finds the one that is lossless
    whole."""
    model, source = biased_model(), tmp_path / "plain"
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    model.to(torch.bfloat16).save_pretrained(source)
    tokenizer.save_pretrained(source)
    rules = Rule(codec=Quantized(bits=1, group_size=16)), Rule(layers="0", codec=Lossless())
    compress(source, tmp_path / "packed", Recipe(name="half", rules=rules))
    text, heldout = repair_texts
    places = tmp_path / "packed", tmp_path / "out"
    repair(
        places[0],
        source,
        places[1],
        text=text,
        heldout=heldout,
        settings=settings(steps=16),
        device="cpu",
    )
    assert verify(places[1], source).problems == ()
    before, after = (PackedCheckpoint(place).store.tensors for place in places)
    changed = {
        group.layer
        for group in PackedCheckpoint(places[0]).manifest.groups
        if not torch.equal(*(each[f"{group.prefix}.bias"].read() for each in (before, after)))
    }
    assert changed == {1}
