"""Models around which evaluation and calibration must find their way: code of their own, nested
configurations, encoders, tokens that the model does not know."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import dynamic_module_utils

VOCABULARY = 384

CONFIGURATION = """
from transformers import PretrainedConfig


class ToyConfig(PretrainedConfig):
    model_type = "toymoe"

    def __init__(self, vocab_size=384, hidden_size=32, num_experts=4, num_experts_per_tok=2,
                 sparse=True, **others):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_experts, self.num_experts_per_tok = num_experts, num_experts_per_tok
        self.sparse = sparse
        super().__init__(**others)
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_toy import ToyConfig


class Expert(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate_proj = nn.Linear(width, 24, bias=False)
        self.up_proj = nn.Linear(width, 24, bias=False)
        self.down_proj = nn.Linear(24, width, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.k, self.sparse = config.num_experts_per_tok, config.sparse
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size) for _ in range(config.num_experts)
        )

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(self.k, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            hits = chosen == number
            share = (weights * hits).sum(-1, keepdim=True)
            picked = hits.any(-1)
            if not self.sparse:
                out = out + share * expert(x)
            elif bool(picked.any()):
                out[picked] += share[picked] * expert(x[picked])
        return out


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mlp, self.norm = Block(config), nn.LayerNorm(config.hidden_size)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class ToyForCausalLM(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(2))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids):
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x = layer(x)
        return CausalLMOutput(logits=self.lm_head(x))
"""


def own_code_model(
    place: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, *, sparse: bool = False
) -> Path:
    """A model whose directory holds its code. sparse: whether each expert computes its tokens alone
    and not all of them. Code that is run is kept below `place`, for this test alone."""
    modules = place / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    directory = place / "own"
    directory.mkdir()
    (directory / "configuration_toy.py").write_text(CONFIGURATION, encoding="utf-8")
    (directory / "modeling_toy.py").write_text(MODELING, encoding="utf-8")
    config = {
        "model_type": "toymoe",
        "architectures": ["ToyForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_toy.ToyConfig",
            "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM",
        },
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": VOCABULARY,
        "sparse": sparse,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.4 * torch.randn(shape, generator=random)

    tensors = {
        name: drawn(VOCABULARY, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    for layer in (f"model.layers.{number}" for number in range(2)):
        tensors[f"{layer}.norm.weight"] = torch.ones(32)
        tensors[f"{layer}.norm.bias"] = torch.zeros(32)
        tensors[f"{layer}.mlp.gate.weight"] = drawn(4, 32)
        for name, shape in (("gate", (24, 32)), ("up", (24, 32)), ("down", (32, 24))):
            start = drawn(*shape)
            for expert in range(4):
                key = f"{layer}.mlp.experts.{expert}.{name}_proj.weight"
                tensors[key] = start + 0.1 * drawn(*shape)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(directory)
    return directory


def with_added_token(source: Path, target: Path) -> Path:
    """A copy whose tokenizer knows a token of the text that the model has no row for."""
    shutil.copytree(source, target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens(["miller"])
    tokenizer.save_pretrained(target)
    return target


def _saved(model: Any, directory: Path, tokenizer: Any) -> Path:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 3 and len(weight) == 4:  # experts that share a start
                weight.copy_(weight[:1] + 0.1 * weight)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def vision_language_model(directory: Path, tokenizer: Any) -> Path:
    """Qwen3-VL: vocabulary, context and top-k are in a text_config."""
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "rope_theta": 10_000.0,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    marks = {"image_token_id": 380, "video_token_id": 381}
    ends = {"vision_start_token_id": 382, "vision_end_token_id": 383}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **marks, **ends)
    return _saved(transformers.Qwen3VLMoeForConditionalGeneration(config), directory, tokenizer)


def encoder_decoder_model(directory: Path, tokenizer: Any) -> Path:
    """Switch, with two layers of experts on either side."""
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_experts=4,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    return _saved(model, directory, tokenizer)


def failing_model(directory: Path, tokenizer: Any) -> Path:
    """DBRX without a limit for attention, at which transformers 5.23 fails in the first layer."""
    torch.manual_seed(0)
    config = transformers.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=128,
        vocab_size=VOCABULARY,
        attn_config={"kv_n_heads": 2, "rope_theta": 10_000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    )
    return _saved(transformers.DbrxForCausalLM(config), directory, tokenizer)
