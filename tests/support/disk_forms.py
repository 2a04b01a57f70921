"""MoE blocks in every form on disk, by hand: fused, turned, interleaved, stacked, with biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ders_core.checkpoint.layouts import Projection
from ders_core.recipe import Recipe, Rule

K, D, H = 5, 24, 40
Tensors = dict[str, torch.Tensor]


def alike(shape: tuple[int, ...], count: int, apart: float = 0.1) -> torch.Tensor:
    return torch.randn(1, *shape) + apart * torch.randn(count, *shape)


def weights(apart: float = 0.1) -> Tensors:
    shapes = {"gate": (H, D), "up": (H, D), "down": (D, H)}
    return {name: alike(shape, K, apart) for name, shape in shapes.items()}


def forms() -> dict[str, tuple[Tensors, dict[str, Any]]]:
    """Tensors of one block in bfloat16, and what config.json says."""
    torch.manual_seed(0)
    w = weights()
    pair = torch.stack([w["gate"], w["up"]])  # [2, K, H, D]
    gpt, llama = "model.layers.1.mlp", "model.layers.0.feed_forward"
    phi = "model.layers.2.mlp.deepspeed_moe.experts.deepspeed_experts"
    dbrx = "transformer.blocks.0.ffn"
    shared = weights()
    return {
        "gpt_oss": (
            {
                f"{gpt}.experts.gate_up_proj": pair.permute(1, 3, 2, 0).reshape(K, D, 2 * H),
                f"{gpt}.experts.down_proj": w["down"].mT,
                f"{gpt}.experts.gate_up_proj_bias": torch.randn(K, 2 * H),
                f"{gpt}.experts.down_proj_bias": torch.randn(K, D),
                f"{gpt}.router.weight": torch.randn(K, D),
            },
            {"model_type": "gpt_oss", "num_local_experts": K},
        ),
        "llama4": (
            {
                f"{llama}.experts.gate_up_proj": torch.cat([w["gate"], w["up"]], 1).mT,
                f"{llama}.experts.down_proj": w["down"].mT,
                f"{llama}.router.weight": torch.randn(K, D),
            }
            | {f"{llama}.shared_expert.{p}_proj.weight": s[0] for p, s in shared.items()},
            {"model_type": "llama4_text"},
        ),
        "dbrx": (
            {
                f"{dbrx}.experts.mlp.w1": w["gate"].reshape(K * H, D),
                f"{dbrx}.experts.mlp.v1": w["up"].reshape(K * H, D),
                f"{dbrx}.experts.mlp.w2": w["down"].mT.reshape(K * H, D),
                f"{dbrx}.router.layer.weight": torch.randn(K, D),
            },
            {"model_type": "dbrx"},
        ),
        "phi": (
            {
                f"{phi}.{expert}.{name}.{kind}": tensor[expert]
                for name, kind, tensor in (
                    ("fc1", "weight", w["up"]),
                    ("fc2", "weight", w["down"]),
                    ("fc1", "bias", torch.randn(K, H)),
                    ("fc2", "bias", torch.randn(K, D)),
                )
                for expert in range(K)
            },
            {"model_type": "moe_llava_phi"},
        ),
    }


def write(directory: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    directory.mkdir()
    plain = {name: tensor.bfloat16().contiguous().clone() for name, tensor in tensors.items()}
    plain["model.norm.weight"] = torch.ones(D)
    save_file(plain, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def read(directory: Path) -> Tensors:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def extended(directory: Path, like: bool = True) -> Path:
    torch.manual_seed(3)
    tensors: Tensors = {}
    for projection, w in weights().items():
        every = alike((H, D) if projection != "down" else (D, H), K + 1)
        for expert in range(K):
            tensors[f"model.layers.0.mlp.experts.{expert}.{projection}_proj.weight"] = every[expert]
        last = every[K] if like else torch.cat([w[0], w[0]], 1 if projection == "down" else 0)
        tensors[f"model.layers.0.mlp.shared_expert.{projection}_proj.weight"] = last
    tensors["model.layers.0.mlp.shared_expert_gate.weight"] = torch.randn(1, D)
    return write(directory, tensors, {"model_type": "qwen2_moe", "num_experts": K})


def franken(directory: Path) -> Path:
    """Experts 0, 2 and 4 from one FFN, 1 and 3 from another, as in a merge of two models."""
    torch.manual_seed(4)
    tensors: Tensors = {}
    for projection, shape in (("gate", (H, D)), ("up", (H, D)), ("down", (D, H))):
        starts = torch.randn(2, *shape)
        for expert in range(K):
            weight = starts[expert % 2] + 0.05 * torch.randn(shape)
            tensors[f"model.layers.0.mlp.experts.{expert}.{projection}_proj.weight"] = weight
    return write(directory, tensors, {"model_type": "qwen3_moe", "num_experts": K})


def only(codec: Any, *projections: Projection, **fields: Any) -> Recipe:
    rule = Rule(codec=codec, projections=projections or ("gate", "up", "down"))
    return Recipe(name="only", rules=(rule,), **fields)


FORMS = forms()
