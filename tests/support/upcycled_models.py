"""Tiny models of dense families, and of what they become: random, from their own configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from ders_core.hf.moe_ffn import MoeFFN
from ders_core.hf.upcycled import UPCYCLED

LAYERS, EXPERTS, TOP_K, TOKENS = 4, 4, 2, torch.arange(5, 25).view(2, 10)
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SMALL = {key: SIZES[key] for key in SIZES.keys() - {"num_key_value_heads"}}
GPT2 = {key: SMALL[key] for key in SMALL.keys() - {"intermediate_size"}} | {"n_inner": 48}
DENSE: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama with biases": lambda: transformers.LlamaConfig(**SIZES, mlp_bias=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
    "phi": lambda: transformers.PhiConfig(**SMALL),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES),
}
EVERY, ALTERNATE = list(range(LAYERS)), list(range(0, LAYERS, 2))

Weights = dict[str, torch.Tensor]


def dense_model(family: str) -> Any:
    """Random, its biases too, and its logits far from flat."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(DENSE[family]()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or ".mlp." in name:
                weight.normal_(std=0.2)
    return model


def blocks(model: Any) -> list[nn.Module]:
    """The FFN of each layer."""
    return [layer.mlp for layer in getattr(model.base_model, "layers", None) or model.base_model.h]


def ffn_weights(ffn: Any) -> Weights:
    """A dense FFN's weights under the names of an expert, `[out, in]`."""
    names = {
        "fc1": "up_proj",
        "fc2": "down_proj",
        "c_fc": "up_proj",
        "c_proj": "down_proj",
        "dense_h_to_4h": "up_proj",
        "dense_4h_to_h": "down_proj",
    }
    weights: Weights = {}
    for name, tensor in ffn.named_parameters():
        module, kind = name.split(".")
        if module == "gate_up_proj":
            weights["gate_proj.weight"], weights["up_proj.weight"] = tensor.chunk(2)
        else:
            turned = isinstance(ffn.get_submodule(module), transformers.pytorch_utils.Conv1D)
            weights[f"{names.get(module, module)}.{kind}"] = (
                tensor.T if turned and kind == "weight" else tensor
            )
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def upcycled_model(family: str, layers: list[int], universal: bool = False) -> Any:
    """Random all over."""
    config = DENSE[family]()
    model_class = UPCYCLED[config.model_type]
    fields = config.to_dict() | {
        "model_type": f"{config.model_type}_upcycled",
        "moe_layers": layers,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "universal_expert": universal,
    }
    torch.manual_seed(2)
    return model_class(model_class.config_class.from_dict(fields)).eval()


def mixtures(model: Any) -> list[MoeFFN]:
    return [block for block in blocks(model) if isinstance(block, MoeFFN)]


def experts_apart(model: Any) -> Any:
    """Experts that share a start and differ, and routers that choose."""
    torch.manual_seed(3)
    with torch.no_grad():
        for block in mixtures(model):
            block.gate.weight.normal_(std=0.5)
            first = dict(block.experts[0].named_parameters())
            start = {name: torch.randn_like(weight) for name, weight in first.items()}
            for expert in filter(None, (*block.experts, block.shared_expert)):
                for name, weight in expert.named_parameters():
                    weight.copy_(0.2 * (start[name] + 0.3 * torch.randn_like(weight)))
    return model


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    output: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return output
