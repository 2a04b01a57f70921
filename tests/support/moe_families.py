"""Every MoE family that the installed transformers knows, ours among them, found by walking its
configurations; `support.family_names` lists what is found.

Each is built tiny and random, from its own default configuration with its sizes shrunk by the names
of the fields. What holds experts and cannot be built is named, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from support.family_names import FEW_LAYERS
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ders_core.hf.upcycled import UPCYCLED

LAYERS, EXPERTS, TOP_K, VOCABULARY, TOKENS = 4, 4, 2, 96, 12
"""Layers: of what `FEW_LAYERS` does not name."""

TOWERS = re.compile("vision|audio")
"""Configurations of encoders without experts: one layer of each."""

AUTO = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "MODEL_MAPPING",
)
"""The classes that a user would load; the first that can be built counts."""

SIZES = {
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "adapter_out_dim": 32,
    "adapter_output_size": 32,
    "audio_hidden_size": 32,
    "d_ff": 48,
    "d_kv": 8,
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "downsample_hidden_size": 8,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "expert_ffn_hidden_size": 24,
    "expert_hidden_size": 32,
    "ffn_hidden_size": 48,
    "head_dim": 8,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "image_size": 28,
    "intermediate_size": 48,
    "kv_lora_rank": 16,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_num_heads": 4,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "kv_n_heads": 4,
    "max_img_size": 56,
    "max_position_embeddings": 128,
    "mel_vocab_size": 16,
    "mlp_dim": 48,
    "moe_hidden_size": 32,
    "moe_intermediate_size": 24,
    "moe_latent_size": 32,
    "moe_shared_expert_intermediate_size": 24,
    "n_embd": 32,
    "n_head": 4,
    "n_heads": 4,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "num_sliding_attention_heads": 4,
    "out_hidden_size": 32,
    "output_channels": 32,
    "patch_size": 14,
    "projection_hidden_dim": 32,
    "projector_hidden_size": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "q_lora_rank": 16,
    "qk_head_dim": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "share_expert_dim": 24,
    "shared_expert_intermediate_size": 24,
    "sliding_window": 16,
    "text_hidden_size": 32,
    "v_head_dim": 8,
    "vision_output_dim": 32,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "zero_expert_num": 2,
}
UNSET = {
    "n_routed_experts": EXPERTS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "top_k_experts": TOP_K,
    "moe_intermediate_size": 24,
    "head_dim": 8,
    "sliding_window": 16,
    "n_shared_experts": 1,
    "mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1),
}
"""What stands for a size that a default configuration leaves open."""

LAYER_KEYS = re.compile(
    r"num_hidden_layers|n_layers?|num_(decoder_)?layers|depth|(en|de)coder_layers"
)
EXPERT_KEYS = re.compile(r"(n|num|moe_num)_((local|routed)_)?experts")
TOP_K_KEYS = re.compile(
    r"num_experts_per_tok(en)?|experts_per_token|(moe_)?top_?k(_experts)?|moe_k"
)
GROUP_KEYS = re.compile(r"((n|num|topk|num_expert)_)group|topk_group|n_group")

INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
SAM = {"sam_config": {"downsample_channels": [16, 32]}}
OWN: dict[str, dict[str, Any]] = {
    # the default has layers of the one kind that has no key-value cache within the first four
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "gemma4": {"text_config": {"enable_moe_block": True}},
    "gemma4_text": {"enable_moe_block": True},
    "qwen3_omni_moe": {"talker_config": {"text_config": {"shared_expert_intermediate_size": 24}}},
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [24, 16],
            "rope_parameters": {"mrope_section": [1, 1, 2]},
        }
    },
    "muse_spark": {"audio_config": {"num_hidden_layers": 4, "hidden_sizes": [8, 16, 24, 32]}},
    "deepseek_ocr2": {"vision_config": SAM},
    "unlimited_ocr": {"vision_config": SAM},
    "mistral4": {"head_dim": 16},
    "mimo_v2_flash": {"num_key_value_heads": 2},  # its sliding layers have twice as many
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 0]}}},
    "glm4v_moe_text": {"rope_parameters": {"mrope_section": [1, 1, 0]}},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0, "qk_head_dim": 8, "head_dim": 0}},
    "glm5_next_text": {"qk_rope_head_dim": 0, "qk_head_dim": 8, "head_dim": 0},
    "dots3_note": {"text_config": {"head_dim": 16}},
    "dots3_note_text": {"head_dim": 16},
    **{f"{dense}_upcycled": {"moe_layers": [0, 2], "universal_expert": True} for dense in UPCYCLED},
}
"""What a family needs beside."""

NO_MOE = {
    "doge": "its experts are rows of two embeddings that are looked up by keys, not FFNs",
    "nougat": "only the name of one of its sub-configurations speaks of experts",
    "vitpose": "its experts are further columns of one matrix that all images pass through",
    "vitpose_backbone": "as vitpose, whose part it is",
}
"""Configurations that speak of experts, and models that have none of an FFN's form."""


@dataclass(frozen=True)
class Family:
    """A configuration class, and the model class that a user would load."""

    model_type: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16, but for Inkling 2, whose router transformers runs in float32 only."""
        return torch.float32 if "inkling2" in self.model_type else torch.bfloat16

    def empty(self) -> PreTrainedModel:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return self.model_class(self.config)

    def build(self, seed: int = 0) -> PreTrainedModel:
        """A random model whose experts share a start, in evaluation mode."""
        torch.manual_seed(seed)
        model = self.model_class(self.config).eval()
        with torch.no_grad():
            starts: dict[str, torch.Tensor] = {}
            for name, weight in model.named_parameters():
                alone = re.sub(r"experts\.(expert_)?\d+\.", "experts.*.", name)
                if alone != name:
                    start = starts.setdefault(alone, weight.clone())
                    weight.copy_(start + 0.1 * start.std() * torch.randn_like(weight))
                elif weight.dim() == 3 and weight.shape[0] == EXPERTS and "expert" in name:
                    start = weight[:1].clone()
                    weight.copy_(start + 0.1 * start.std() * torch.randn_like(weight))
                elif not torch.isfinite(weight).all():  # allocated and left to a checkpoint
                    weight.copy_(0.05 * torch.randn_like(weight))
            for weight in model.parameters():
                weight.data = weight.to(self.dtype)
        return model

    def inputs(self) -> dict[str, Any]:
        """Text for one forward pass."""
        tokens = torch.arange(5, 5 + TOKENS)[None]
        arguments: dict[str, Any] = {"input_ids": tokens}
        if self.config.is_encoder_decoder:
            arguments["decoder_input_ids"] = tokens
        else:
            arguments["use_cache"] = False
        return arguments


def shrunk(config: Mapping[str, Any], layers: int = LAYERS) -> dict[str, Any]:
    """A configuration's fields with the sizes replaced, sub-configurations included."""
    small: dict[str, Any] = {}
    for key, value in config.items():
        name = str(key)
        number = isinstance(value, int) and not isinstance(value, bool)
        if name in ("id2label", "label2id", "transformers_version", "architectures"):
            continue
        if value is None and name in UNSET:
            small[key] = UNSET[name]
        elif name == "per_layer_config" and isinstance(value, Mapping):
            first = {layer: fields for layer, fields in value.items() if int(layer) < layers}
            small[key] = {layer: shrunk(fields, layers) for layer, fields in first.items()}
        elif isinstance(value, Mapping):
            small[key] = shrunk(value, 1 if TOWERS.search(name) else layers)
        elif value == 0 and number:
            small[key] = 0
        elif name in SIZES and number:
            small[key] = SIZES[name]
        elif LAYER_KEYS.fullmatch(name) and number:
            small[key] = layers
        elif EXPERT_KEYS.fullmatch(name) and number:
            small[key] = EXPERTS
        elif TOP_K_KEYS.fullmatch(name) and number and value > 1:
            small[key] = TOP_K
        elif GROUP_KEYS.fullmatch(name) and number:
            small[key] = 1
        elif name.endswith("_token_id") and number:
            small[key] = min(value, VOCABULARY - 1 - len(small) % 16)
        elif isinstance(value, list) and re.search("layer|block", name):
            small[key] = value[:layers]
        else:
            small[key] = value
    return small


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields} | {
        key: _merged(fields[key], value) if isinstance(value, Mapping) else value
        for key, value in changes.items()
    }


def _speaks_of_experts(config: PreTrainedConfig) -> bool:
    return "expert" in str(config.to_dict())


def _classes(config_class: type[PreTrainedConfig]) -> Iterator[type[PreTrainedModel]]:
    for name in AUTO:
        mapping = getattr(modeling_auto, name)
        if config_class in mapping:
            classes = mapping[config_class]
            yield classes[0] if isinstance(classes, tuple) else classes


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


PART_OF_ANOTHER = "no auto class loads it; it is a part of another model"


@cache
def default_of(model_type: str) -> PreTrainedConfig:
    """Not to be written to."""
    default: PreTrainedConfig = CONFIG_MAPPING[model_type]()
    return default


@cache
def walk() -> tuple[tuple[str, ...], dict[str, str]]:
    """(model_types of all families that can be built, model_type -> why another one cannot)."""
    built, without = [], {}
    for model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
        try:
            default = default_of(model_type)
        except Exception as error:  # a configuration without defaults
            if "moe" in model_type or "expert" in str(vars(config_class)):
                without[model_type] = f"it has no default configuration ({_reason(error)})"
            continue
        if not _speaks_of_experts(default) or model_type in NO_MOE:
            continue
        family = family_of(model_type)
        if isinstance(family, Family):
            built.append(model_type)
        else:
            without[model_type] = family
    return tuple(built), without


@cache
def family_of(model_type: str) -> Family | str:
    """The family of a configuration that has defaults, or why it cannot be built."""
    default = default_of(model_type)
    why = PART_OF_ANOTHER
    for number, model_class in enumerate(_classes(type(default))):
        try:
            family = _family(model_type, model_class, FEW_LAYERS.get(model_type, LAYERS))
            family.empty()
            return family
        except Exception as error:  # whatever a model makes of a shrunk configuration
            why = why if number else _reason(error)
    return why


def _family(model_type: str, model_class: type[PreTrainedModel], layers: int) -> Family:
    default = default_of(model_type)
    fields = _merged(shrunk(default.to_dict(), layers), OWN.get(model_type, {}))
    return Family(model_type, model_class, type(default).from_dict(fields))


def kinds_left_out(family: Family) -> set[str]:
    """What one of `LAYERS` layers is and none of the family's: its modules and their sizes."""
    whole = _family(family.model_type, family.model_class, LAYERS)
    return _kinds(whole.empty()) - _kinds(family.empty())


def _kinds(model: PreTrainedModel) -> set[str]:
    kinds = set()
    for name, stack in model.named_modules():
        if isinstance(stack, torch.nn.ModuleList) and not re.search(r"\.\d+\.", name):
            shapes = [[weight.shape for weight in layer.parameters()] for layer in stack]
            layers = [f"{name}: {layer} {own}" for layer, own in zip(stack, shapes, strict=True)]
            if any("expert" in layer for layer in layers):
                kinds |= {*layers}
    return kinds
