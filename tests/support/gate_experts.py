"""A small Mixtral of one layer, whose gates are encoded without a model around them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from ders_core.checkpoint import ExpertGroup
from ders_core.packed.open import open_checkpoint


def write_experts(directory: Path, count: int, shape: tuple[int, int] = (24, 32)) -> None:
    """Experts near a common start, in a directory that does not exist. shape: of gate and up."""
    chance = torch.Generator().manual_seed(1)
    tensors = {"model.layers.0.block_sparse_moe.gate.weight": torch.zeros(count, shape[1])}
    for name, sides in (("w1", shape), ("w2", shape[::-1]), ("w3", shape)):
        start = torch.randn(sides, generator=chance)
        for expert in range(count):
            weight = start + 0.1 * torch.randn(sides, generator=chance)
            whole = f"model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight"
            tensors[whole] = weight.bfloat16()
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = {"model_type": "mixtral", "num_local_experts": count}
    (directory / "config.json").write_text(json.dumps(config))


def write_each(place: Path, counts: Iterable[int], shape: tuple[int, int] = (24, 32)) -> Path:
    """One with so many experts for each count, in a directory of that name; returns the place."""
    for count in counts:
        write_experts(place / str(count), count, shape)
    return place


def gates(place: Path) -> ExpertGroup:
    return next(each for each in open_checkpoint(place).groups() if each.projection == "gate")
