"""How many experts a token gets, out of configs in which a top_k is many things."""

from __future__ import annotations

from typing import Any

import pytest

from ders_core.checkpoint.recognition import declared_top_k

SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_beams": 1}

CONFIGS: list[tuple[str, dict[str, Any], int | None]] = [
    ("plain", {"num_local_experts": 8, "num_experts_per_tok": 2}, 2),
    ("beside sampling", {"num_local_experts": 128, "num_experts_per_tok": 8, **SAMPLING}, 8),
    ("sampling alone", {"num_experts": 128, **SAMPLING}, None),
    ("a lone default", {"num_experts": 8, "top_k": 50}, None),
    ("a lone default without experts", {"model_type": "mixtral", "top_k": 2}, None),
    ("a router's own", {"num_experts": 8, "top_k": 2}, 2),
    ("in a section", {"num_experts": 8, "router": {"top_k": 2}}, 2),
    ("the section beats sampling", {"num_experts": 8, "moe": {"topk": 2}, **SAMPLING}, 2),
    ("of a task", {"num_experts": 64, "tasks": {"text": {"top_k": 4, "do_sample": True}}}, None),
    ("ernie", {"moe_num_experts": 64, "moe_k": 6}, 6),
    ("dbrx", {"ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}}, 4),
    ("gemma", {"num_experts": 128, "top_k_experts": 8}, 8),
    ("megatron", {"num_moe_experts": 8, "moe_router_topk": 2}, 2),
    ("hunyuan", {"num_experts": 64, "moe_topk": [8, 8, 8, 8]}, 8),
    ("by layer", {"num_experts": 64, "moe_topk": [8, 8, 4, 4]}, None),
    (
        "nested",
        {
            "model_type": "vl",
            "top_k": 50,
            "text_config": {
                "model_type": "qwen3_moe",
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "top_k": 50,
            },
            "vision_config": {"model_type": "vit", "top_k": 50},
        },
        8,
    ),
    ("impossible", {"num_local_experts": 4, "num_experts_per_tok": 9}, None),
    ("no number", {"num_local_experts": 4, "num_experts_per_tok": None}, None),
    ("true is no number", {"num_local_experts": 4, "num_experts_per_tok": True}, None),
    ("quantization", {"num_experts": 8, "quantization_config": {"moe_top_k": 3}}, None),
]


@pytest.mark.parametrize(
    ("config", "wanted"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS]
)
def test_the_routers_number(config: dict[str, Any], wanted: int | None) -> None:
    assert declared_top_k(config) == wanted
