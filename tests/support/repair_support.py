"""A packed checkpoint of every codec, texts, and settings of a repair of a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from support.calibrate_support import gpt_oss

from ders_core.codecs import Chain, Entropy, LowRank, Quantized, Sparse
from ders_core.recipe import Recipe, Rule
from ders_core.repair import RepairResult, RepairSettings

WINDOW, BATCH, STEPS = 32, 4, 8
"""Of repairs that take a second."""

EVERY_CODEC = Recipe(
    name="tuned",
    seed=5,
    rules=(
        Rule(codec=Quantized(bits=1, group_size=32)),
        Rule(projections=("up",), codec=Entropy(bits=1.0)),
        Rule(layers="0", projections=("down",), codec=LowRank(rank=4)),
        Rule(
            layers="1",
            projections=("down",),
            codec=Chain(
                stages=(
                    Sparse(drop_rate=0.9, method="magnitude"),
                    Quantized(bits=2, grid="affine", group_size=16, scale_bits=8),
                )
            ),
        ),
    ),
)
"""Scales, offsets, levels, factors and values of a tiny Mixtral."""


@dataclass(frozen=True)
class Repaired:
    """packed: before. out: after. before: digests of the files that went in, by name."""

    original: Path
    packed: Path
    out: Path
    text: Path
    heldout: Path
    result: RepairResult
    before: dict[Path, dict[str, str]]


def settings(**fields: Any) -> RepairSettings:
    few = {"window": WINDOW, "batch": BATCH, "steps": STEPS, "rate": 0.005, "heldout_tokens": 310}
    return RepairSettings.of(few | fields)


def biased_model() -> Any:
    """GPT-OSS, whose experts have biases: those of gate and up take turns in one tensor."""
    torch.manual_seed(5)
    model = gpt_oss()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write_texts(directory: Path, text: str) -> tuple[Path, Path]:
    """(to train on, held out): the words of a text by chance, so that nothing comes twice."""
    words, order = text.split(), Random(4)
    files = directory / "train.txt", directory / "heldout.txt"
    for file in files:
        file.write_text(" ".join(order.choices(words, k=2000)), encoding="utf-8")
    return files
