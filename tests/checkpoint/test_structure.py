"""Experts of models that no layout entry names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.messages import raises_saying
from support.written_experts import D, H, K, Tensors, experts, same, write

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint


@pytest.mark.parametrize("form", ["siblings", "stacked", "stacked and fused", "turned"])
@pytest.mark.parametrize("gate", [True, False])
def test_experts_are_found_by_structure(tmp_path: Path, form: str, gate: bool) -> None:
    if form == "stacked and fused" and not gate:
        pytest.skip("nothing to fuse")
    tensors: Tensors = {"wte.weight": torch.randn(50, D)}
    wanted = {layer: experts(20 + layer, gate) for layer in (0, 2)}
    for layer, matrices in wanted.items():
        block = f"backbone.h.{layer}.ff"
        tensors[f"{block}.switch.weight"] = torch.randn(K, D)
        tensors[f"backbone.h.{layer}.attn.q.weight"] = torch.randn(D, D)
        if form == "siblings":
            names = {"gate": "wg", "up": "wu", "down": "wd_down"}
            for projection, weights in matrices.items():
                for expert in range(K):
                    name = f"{block}.branches.{expert}.{names[projection]}.weight"
                    tensors[name] = weights[expert]
        elif form == "stacked and fused":
            tensors[f"{block}.bank.first"] = torch.cat([matrices["gate"], matrices["up"]], 1)
            tensors[f"{block}.bank.output"] = matrices["down"]
        else:
            names = {"gate": "a_gate", "up": "b", "down": "c_out_proj"}
            for projection, weights in matrices.items():
                lies = weights.mT if form == "turned" else weights
                tensors[f"{block}.bank.{names[projection]}"] = lies
    checkpoint = open_checkpoint(
        write(tmp_path / "m", tensors, model_type="never_seen", num_experts=K)
    )
    assert checkpoint.family == "never_seen"
    assert checkpoint.layout.family == "generic"
    assert 0.6 <= checkpoint.recognition.sure < 1
    assert "switch.weight" in checkpoint.recognition.because
    for layer, matrices in wanted.items():
        same(checkpoint, layer, matrices)
    assert all(group.router for group in checkpoint.groups())


def test_siblings_that_are_no_experts_are_not_taken(tmp_path: Path) -> None:
    tensors = {
        f"decoder.layers.{layer}.heads.{head}.{name}.weight": torch.randn(*shape)
        for layer in range(2)
        for head in range(3)
        for name, shape in (("in", (H, D)), ("out", (D, H)))
    }
    with raises_saying(CheckpointError, "no experts", "ders_layout"):
        open_checkpoint(write(tmp_path / "m", tensors, model_type="codebooks"))


def test_a_dense_model_holds_no_experts(dense_parent_dir: Path) -> None:
    with raises_saying(CheckpointError, "no experts", dense_parent_dir.name):
        open_checkpoint(dense_parent_dir)
