"""Tiny dense models of every family, random but for a scale that makes their FFNs matter; and
configurations of trainings of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ders_core.files.store import TensorStore
from ders_core.upcycle import UpcycleConfig

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


def save_gpt2_with_dropout(directory: Path, tokenizer: Any) -> Path:
    """A resumed training of it needs the random state too."""
    dense_model("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


STEPS = 6
LOW_RANK = "[{form: lowrank, rank: 2}]"
SPARSE = "[{form: sparse, drop_rate: 0.8}]"
RENEWED = "[{form: sparse, drop_rate: 0.8, renew: {first: 1, every: 2, until: 1.0}}]"


def config_of(text: Path, forms: str = "[{form: lowrank, rank: 2}]", **more: Any) -> UpcycleConfig:
    training = {"steps": STEPS, "batch": 2, "warmup": 1, "learning_rate": 1e-2, "save_every": 2}
    whole: dict[str, Any] = {
        "name": "tiny",
        "experts": 3,
        "data": {"texts": [str(text)], "window": 32},
        "training": training | more.pop("training", {}),
    }
    data = whole["data"] | more.pop("data", {})
    rules = UpcycleConfig.from_yaml(f"name: x\nforms: {forms}\ndata: {{texts: x}}\n").forms
    return UpcycleConfig.model_validate(whole | more | {"data": data, "forms": rules})


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    store = TensorStore.open(directory)
    return {name: info.read() for name, info in store.tensors.items()}


def assert_same(one: Path, other: Path) -> None:
    """Byte for byte."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


def further(
    text: Path, name: str, forms: str, heldout: Path | None = None, **more: Any
) -> UpcycleConfig:
    rules = UpcycleConfig.from_yaml(f"name: x\nforms: {forms}\ndata: {{texts: x}}\n").forms
    whole: dict[str, Any] = {
        "name": name,
        "forms": rules,
        "data": {"texts": [str(text)], "heldout": heldout and str(heldout), "window": 32},
        "training": {"steps": 3, "batch": 2, "warmup": 0, "learning_rate": 1e-2},
    }
    return UpcycleConfig.model_validate(whole | more)
