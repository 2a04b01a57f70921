"""A whole model with tied embeddings, each base and other tensor with a codec of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.gradient_calibrations import with_gradients
from transformers import AutoModelForCausalLM

from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

EMBEDDING = "model.embed_tokens.weight"
BY_KNOB = "codec: entropy, knob: 1e-4, steps: sensitive, rounding: compensated"
RECIPE = f"""
version: 2
name: whole
calibration: CALIBRATION
rules: [{{codec: entropy, bits: 0.6, rounding: unbiased}}]
base_codec:
  - {{codec: quantized, bits: 3, grid: normal, group_size: 32}}
  - {{projections: up, codec: entropy, bits: 4}}
  - {{layers: "1", projections: [gate, up], {BY_KNOB}}}
  - {{layers: "1", projections: up, codec: lossless}}
  - {{layers: "0", projections: down, codec: keep}}
others:
  - {{codec: lossless}}
  - {{kinds: embedding, {BY_KNOB}}}
  - {{kinds: attention, layers: "1", codec: quantized, bits: 8}}
  - {{names: "*.1.self_attn.k_*", codec: keep}}
"""


@pytest.fixture(scope="module")
def tied(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Mixtral with one matrix that reads tokens and answers."""
    model = AutoModelForCausalLM.from_pretrained(mixtral_dir, dtype="auto")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    place = tmp_path_factory.mktemp("tied") / "model"
    model.save_pretrained(place)
    assert "lm_head.weight" not in load_file(place / "model.safetensors")
    return place


@pytest.fixture(scope="module")
def packed(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packed")
    calibration = place / "c.safetensors"
    with_gradients(open_checkpoint(tied), calibration, cost=1.0, others=[EMBEDDING])
    text = RECIPE.replace("CALIBRATION", str(calibration))
    compress(tied, place / "packed", Recipe.from_yaml(text))
    return place / "packed"


def test_rules_choose_codecs(packed: Path, tied: Path) -> None:
    manifest = PackedCheckpoint(packed).manifest
    bases = {(group.layer, group.projection): group.base_codec for group in manifest.groups}
    named = {key: "keep" if codec is None else codec["codec"] for key, codec in bases.items()}
    assert named == {
        (0, "gate"): "quantized",
        (0, "up"): "entropy",
        (0, "down"): "keep",
        (1, "gate"): "entropy",
        (1, "up"): "lossless",
        (1, "down"): "quantized",
    }
    assert {"knob", "bits"} == {
        word for codec in bases.values() for word in ("knob", "bits") if word in (codec or {})
    }
    others = {other.name: other.codec["codec"] for other in manifest.others}
    attention = "model.layers.{}.self_attn.{}_proj.weight"
    wanted = {attention.format(0, name): "lossless" for name in "qkvo"}
    wanted |= {attention.format(1, name): "quantized" for name in "qvo"}
    assert others == {EMBEDDING: "entropy", **wanted}
    assert verify(packed, tied).ok


def test_it_is_loaded_with_one_matrix_for_both(packed: Path, tied: Path, tmp_path: Path) -> None:
    """And brought back under the names, with the shapes and dtypes, that it had."""
    synthesize(packed, tmp_path / "back")
    before, back = (load_file(place / "model.safetensors") for place in (tied, tmp_path / "back"))
    assert {name: (each.shape, each.dtype) for name, each in back.items()} == {
        name: (each.shape, each.dtype) for name, each in before.items()
    }
    assert not torch.equal(back[EMBEDDING], before[EMBEDDING])
    model, plain = load_model(packed), load_model(tmp_path / "back")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    weights = plain.state_dict()
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
