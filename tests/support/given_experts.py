"""Makers of tiny checkpoints whose experts are given, for the analysis' tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest
import torch
from safetensors.torch import save_file

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.packed.open import open_checkpoint

MakeCheckpoint = Callable[..., Checkpoint]
MakeGroup = Callable[[torch.Tensor], ExpertGroup]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A Mixtral directory, given each layer's gate weights `[K, out, in]`; `up` is the same, `down`
    its transpose. others: tensors outside the experts, by name."""

    def make(*layers: torch.Tensor, others: Mapping[str, torch.Tensor] | None = None) -> Checkpoint:
        directory = tmp_path_factory.mktemp("given")
        tensors = dict(others or {})
        for layer, weights in enumerate(layers):
            for expert, weight in enumerate(weights):
                prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
                tensors[f"{prefix}.w1.weight"] = weight.clone()
                tensors[f"{prefix}.w3.weight"] = weight.clone()
                tensors[f"{prefix}.w2.weight"] = weight.T.contiguous()
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        config = {
            "model_type": "mixtral",
            "num_local_experts": len(layers[0]),
            "num_hidden_layers": len(layers),
            "num_experts_per_tok": 1,
        }
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return open_checkpoint(directory)

    return make


@pytest.fixture(scope="session")
def group_of(checkpoint_of: MakeCheckpoint) -> MakeGroup:
    """weights `[K, out, in]` as a group on disk."""
    return lambda weights: checkpoint_of(weights).group(0, "gate")


@pytest.fixture(scope="session")
def planted() -> Callable[..., torch.Tensor]:
    """`[K, 48, 32]` bfloat16: each expert is the start that `which` names, plus its own noise."""

    def make(which: list[int], noise: float = 0.05, seed: int = 0) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        starts = torch.randn(max(which) + 1, 48, 32, generator=random)
        weights = starts[which] + noise * torch.randn(len(which), 48, 32, generator=random)
        return weights.bfloat16()

    return make
