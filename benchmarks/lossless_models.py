"""The models that `lossless.py` makes for itself, so that anyone can run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM
from unbiased_models import shipped_demo

DELTA = 0.01
"""Of the weights' standard deviation: that of what an expert learnt."""

SIZES: dict[str, Any] = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
HEADS: dict[str, Any] = {
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}

SHARD = "64GB"
"""So that there is one weight file."""


def demo(work: Path) -> Path:
    """The demo that comes with the package: 8 experts in each of 4 layers, of 384 × 128."""
    return shipped_demo(work).moe


def upcycled(work: Path) -> Path:
    """Random weights in the shapes of SmolLM2-135M: 4 experts of 1536 × 576 in each of 12 layers,
    each the same start and a small delta of its own; 337 MB."""
    place = work / "upcycled"
    if place.exists():
        return place
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, **HEADS, num_local_experts=4, tie_word_embeddings=True)
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for block in model.model.layers:
            for weights in (block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
                start = weights[0].clone()
                for weight in weights:
                    noise = torch.randn(start.shape).mul_(DELTA * start.std())
                    weight.copy_(noise.add_(start))
    model.bfloat16().save_pretrained(place, max_shard_size=SHARD)
    return place


MODELS: Mapping[str, Callable[[Path], Path]] = {"demo": demo, "upcycled": upcycled}
