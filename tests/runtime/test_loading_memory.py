"""A model with packed experts is loaded without ever holding many of them whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.live_bytes import LiveBytes
from transformers import MixtralConfig, MixtralForCausalLM

from ders_core.codecs import Chain, Codec, Entropy, LowRank, Quantized, Sparse
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.resident import resident_bytes

HIDDEN, INNER, EXPERTS = 256, 1024, 8
CODECS: dict[str, Codec] = {
    "gate": Quantized(bits=2),
    "up": Sparse(drop_rate=0.9),
    "down": Entropy(bits=0.3, rounding="unbiased"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
    )
    out = tmp_path_factory.mktemp("loading") / "original"
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    return out


def packed(original: Path, out: Path, codecs: dict[str, Codec]) -> Path:
    rules = (Rule(codec=codec, projections=(name,)) for name, codec in codecs.items())
    compress(original, out, Recipe(name="loading", rules=tuple(rules)))
    return out


def test_no_more_is_held_than_what_is_packed_and_one_expert(original: Path, tmp_path: Path) -> None:
    """Bytes are counted where they are allocated; an expert is counted in float32."""
    place = packed(original, tmp_path / "packed", CODECS)
    load_model(place, mode="packed")  # what is imported and kept once
    with LiveBytes() as live:
        model = load_model(place, mode="packed")
    one_expert = 3 * HIDDEN * INNER * 4
    held = model.get_memory_footprint()
    assert held < live.most <= held + one_expert
    with LiveBytes() as live:
        load_model(place)
    assert live.most > held + one_expert  # of whole weights there are more


def test_bytes_that_depend_on_data_are_told_before(original: Path, tmp_path: Path) -> None:
    """To a hundredth, and the rest exactly; streams of a chain, and of experts with codecs of their
    own."""
    chain = Chain(stages=(LowRank(rank=2), Entropy(bits=1.2)))
    rules = (
        Rule(codec=Entropy(bits=0.4), projections=("gate",)),
        Rule(codec=Entropy(bits=3), projections=("gate",), experts="1,4"),
        Rule(codec=chain, projections=("up",)),
        Rule(codec=Entropy(bits=1, rounding="unbiased"), projections=("down",)),
    )
    compress(original, tmp_path / "packed", Recipe(name="told", rules=rules))
    sizes = resident_bytes(open_checkpoint(tmp_path / "packed"))
    assert sizes is not None
    model = load_model(tmp_path / "packed", mode="packed")
    others = sum(buffer.nbytes for name, buffer in model.named_buffers() if "packed" not in name)
    held = model.get_memory_footprint() - others
    assert abs(sizes[1] - held) <= 0.01 * held
    assert held <= 0.4 * sizes[0]
