"""Tiny dense models of every family, random but for a scale that makes their FFNs matter."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 384
WIDTH, DEPTH, HEADS = 32, 3, 4

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GATED = COMMON | {"intermediate_size": 48}
PLAIN = COMMON | {"intermediate_size": 64}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GATED | {"num_key_value_heads": 2},
    "mistral": GATED | {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 8},
    "qwen2": GATED | {"num_key_value_heads": 2},
    "qwen3": GATED | {"num_key_value_heads": 2, "head_dim": 8},
    "phi": PLAIN,
    "phi3": GATED | {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": DEPTH,
        "n_head": HEADS,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "gpt_neox": PLAIN,
    "stablelm": GATED | {"num_key_value_heads": 4},
}


def dense_model(family: str, **more: Any) -> PreTrainedModel:
    """In float32 and evaluation mode."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **FAMILIES[family] | more)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.dim() > 1:
                parameter.mul_(3)
    return model
