"""The MoE family that a dense model becomes on disk: one of transformers where it computes exactly
that model, otherwise the dense family with MoE blocks (`ders_core.hf.upcycled`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ders_core.checkpoint.layouts import Layout, Weights, known_layouts
from ders_core.hf.upcycled import UPCYCLED
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.dense_model import DenseModel


@dataclass(frozen=True)
class Target:
    """config: the MoE's config.json. layout: how its experts are named on disk."""

    config: dict[str, Any]
    layout: Layout

    @property
    def needs_ders(self) -> bool:
        """Whether transformers can load it only with `ders_core.hf`."""
        return self.config["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    def block(self, dense_block: str) -> str:
        """The name of the MoE block that replaces a dense FFN."""
        return f"{dense_block.rpartition('.')[0]}.{self.layout.block.rpartition('.')[2]}"

    def experts(
        self, block: str, projection: str, config: UpcycleConfig, what: Literal["weight", "bias"]
    ) -> list[str]:
        """The names of the experts' weights or biases, the universal expert's last."""
        name = f"{block}.{_name(self.layout.experts, projection, what)}"
        names = [name.replace("{expert}", str(expert)) for expert in range(config.experts)]
        if config.universal:
            names.append(f"{block}.{_name(self.layout.shared, projection, what)}")
        return names

    def router(self, block: str) -> str:
        return f"{block}.{self.layout.router[0]}"


def shared_gate(block: str) -> str:
    """The name of the gate of a block's universal expert."""
    return f"{block}.shared_expert_gate.weight"


def _name(names: Mapping[str, Weights], projection: str, what: str) -> str:
    """A layout's first name of a projection's weight or bias."""
    return next(
        name
        for name, weights in names.items()
        if tuple(weights.holds) == (projection,) and name.endswith(f".{what}")
    )


def choose_target(dense: DenseModel, config: UpcycleConfig) -> Target:
    """Raises RecipeError if the configuration does not fit the model."""
    layers = config.chosen_layers(dense.layers)
    everywhere = len(layers) == dense.layers
    source = AutoConfig.for_model(**dense.config)
    biased = any(
        bool(getattr(source, name, False)) for name in ("attention_bias", "mlp_bias", "use_bias")
    )
    plain = not biased and not any(dense.bias_of(ffn, "up") for ffn in dense.ffns)
    others = [layer for layer in range(dense.layers) if layer not in layers]
    if dense.family in ("llama", "mistral") and plain and everywhere and not config.universal:
        return _standard("mixtral", source, config, {"num_local_experts": config.experts})
    common = {
        "num_experts": config.experts,
        "norm_topk_prob": True,
        "moe_intermediate_size": dense.intermediate,
        "decoder_sparse_step": 1,
        "mlp_only_layers": others,
    }
    if dense.family == "qwen3" and plain and not config.universal:
        return _standard("qwen3_moe", source, config, common)
    windowed = getattr(source, "sliding_window", None) is not None
    like_qwen2 = dense.family == "qwen2" or (dense.family in ("llama", "mistral") and not windowed)
    if like_qwen2 and plain and config.universal:
        shared = {
            "shared_expert_intermediate_size": dense.intermediate,
            "qkv_bias": dense.family == "qwen2",
        }
        return _standard("qwen2_moe", source, config, common | shared)
    return _upcycled(dense, config, layers)


def _standard(
    family: str, source: PreTrainedConfig, config: UpcycleConfig, more: dict[str, Any]
) -> Target:
    """A family of transformers, with the fields that it shares with the dense one."""
    standard = AutoConfig.for_model(family)
    fields = standard.to_dict().keys() | {"rope_parameters", "head_dim", "dtype"}
    shared = {
        key: value
        for key, value in source.to_dict().items()
        if key in fields and key not in ("model_type", "architectures", "transformers_version")
    }
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    moe = type(standard)(
        **shared | more,
        num_experts_per_tok=config.top_k,
        router_aux_loss_coef=config.router.balance,
        architectures=[architecture],
    )
    fields = json.loads(moe.to_json_string(use_diff=False))
    layout = next(layout for layout in known_layouts() if layout.stores(family))
    return Target(fields, layout)


def _upcycled(dense: DenseModel, config: UpcycleConfig, layers: list[int]) -> Target:
    """The dense family with MoE blocks in selected layers."""
    fields = dense.config | {
        "model_type": UPCYCLED[dense.family].config_class.model_type,
        "architectures": [UPCYCLED[dense.family].__name__],
        "moe_layers": layers,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.top_k,
        "universal_expert": config.universal,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": config.router.balance,
    }
    layout = next(layout for layout in known_layouts() if layout.stores(fields["model_type"]))
    return Target(fields, layout)
