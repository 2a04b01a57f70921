"""Deltas of `entropy` are multiplied as they are held: no stream is decoded once a model is
loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ders_core.codecs import Chain, Entropy, LowRank, Quantized
from ders_core.codecs.coding import level_stream
from ders_core.codecs.held_levels import HeldLevels
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.held import EachExpert

UNBIASED = Entropy(bits=1.3, rounding="unbiased")
RECIPE = Recipe(
    name="streams",
    rules=(
        Rule(codec=UNBIASED, projections=("gate",)),
        Rule(codec=Entropy(bits=0.5), projections=("up",)),
        Rule(
            codec=Chain(stages=(LowRank(rank=2, factor_bits=8), Entropy(bits=1))),
            projections=("down",),
        ),
        Rule(codec=Quantized(bits=2, group_size=16), projections=("up",), layers="1", experts="0"),
    ),
)
IDS = torch.arange(3, 43)[None] % 90


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("streams") / "packed"
    compress(mixtral_dir, out, RECIPE)
    return out


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_answers_are_those_of_whole_weights(
    packed: Path, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(packed, dtype=torch.float32)
    held = load_model(packed, dtype=torch.float32, mode="packed")
    monkeypatch.setattr(level_stream, "read", None)
    if tokens < 10:
        monkeypatch.setattr(HeldLevels, "decode", None)
        monkeypatch.setattr(HeldLevels, "unpack", None)
    with torch.inference_mode():
        expected, got = (model(IDS[:, :tokens]).logits for model in (whole, held))
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_pairs_are_taken_at_once(packed: Path) -> None:
    """Also of a chain with factors in a few bits."""
    held = load_model(packed, dtype=torch.float32, mode="packed")
    first, second = (layer.mlp.experts.packed for layer in held.model.layers)
    for projection in ("gate", "up", "down"):
        assert not isinstance(first.group(projection).routed(), EachExpert)
    assert isinstance(second.group("up").routed(), EachExpert)  # experts with codecs of their own
    assert second._routed_layer() is not None


def test_levels_do_not_change_with_the_dtype(packed: Path) -> None:
    """A model that is moved to another one gives what it would give if it was loaded so."""
    moved = load_model(packed, dtype=torch.float32, mode="packed").to(torch.bfloat16)
    loaded = load_model(packed, dtype=torch.bfloat16, mode="packed")
    with torch.inference_mode():
        for ids in (IDS, IDS[:, :1]):
            expected, got = (copy.deepcopy(model)(ids).logits for model in (loaded, moved))
            assert float((got - expected).abs().max()) <= 0.02 * float(expected.abs().max())
