"""Experts written by hand into a checkpoint, and compared with what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ders_core.checkpoint import Checkpoint

K, D, H = 4, 6, 10  # experts, hidden size, inner size


Tensors = dict[str, torch.Tensor]


def experts(seed: int, gate: bool = True) -> Tensors:
    """gate, up `[K, H, D]`, down `[K, D, H]`."""
    torch.manual_seed(seed)
    shapes = {"gate": (H, D), "up": (H, D), "down": (D, H)}
    return {
        name: torch.randn(K, *shape) for name, shape in shapes.items() if gate or name != "gate"
    }


def write(directory: Path, tensors: Tensors, **config: Any) -> Path:
    directory.mkdir()
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def same(checkpoint: Checkpoint, layer: int, wanted: Tensors) -> None:
    """The groups of a layer are `wanted`, whole and by expert and by rows."""
    assert {g.projection for g in checkpoint.groups() if g.layer == layer} == set(wanted)
    for projection, weights in wanted.items():
        group = checkpoint.group(layer, projection)
        assert torch.equal(group.read(), weights)
        for expert in range(K):
            assert torch.equal(group.read(expert), weights[expert])
            assert torch.equal(group.read(expert, slice(1, 4)), weights[expert, 1:4])
        assert torch.equal(group.read(rows=slice(2, 99)), weights[:, 2:])
