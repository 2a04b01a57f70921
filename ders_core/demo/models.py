"""The demo's two models: a dense parent, and the MoE that it is upcycled to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ders_core.demo.tokens import Stream
from ders_core.upcycle.routers import clustered_routers


@dataclass(frozen=True)
class Shape:
    """Sizes of the demo's models."""

    vocabulary: int = 2048
    hidden: int = 192
    intermediate: int = 512
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    experts: int = 8
    top_k: int = 2

    @property
    def nbytes(self) -> int:
        """Bytes of both models on disk at least: embeddings, heads and FFNs in bfloat16."""
        embeddings = 2 * self.vocabulary * self.hidden
        ffns = self.layers * 3 * self.hidden * self.intermediate
        return 2 * (2 * embeddings + ffns * (1 + self.experts))


def dense_model(shape: Shape, window: int) -> MistralForCausalLM:
    """A fresh Mistral-like model."""
    config = MistralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=window,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return MistralForCausalLM(config)


def upcycle(
    dense: MistralForCausalLM, shape: Shape, stream: Stream, seed: int
) -> MixtralForCausalLM:
    """Every FFN becomes `experts` exact copies of itself, behind a router.

    The routers start from clusters of what the dense FFNs see (spherical k-means on the text), so
    that experts get different tokens from the first step.
    """
    source = dense.config
    config = MixtralConfig(
        **{
            key: getattr(source, key)
            for key in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "max_position_embeddings",
                "sliding_window",
                "tie_word_embeddings",
                "bos_token_id",
                "eos_token_id",
                "rms_norm_eps",
            )
        },
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        router_aux_loss_coef=ROUTER_LOSS,
        output_router_logits=False,
    )
    config.rope_parameters = dict(source.rope_parameters)
    moe = MixtralForCausalLM(config)
    carried = {key: value for key, value in dense.state_dict().items() if ".mlp." not in key}
    moe.load_state_dict(carried, strict=False)
    ffns = {layer: block.mlp for layer, block in enumerate(dense.model.layers)}
    centres = clustered_routers(dense, ffns, [stream(), stream()], shape.experts, seed)
    with torch.no_grad():
        for layer, block in enumerate(dense.model.layers):
            mlp = moe.model.layers[layer].mlp
            fused = torch.cat([block.mlp.gate_proj.weight, block.mlp.up_proj.weight])
            mlp.experts.gate_up_proj.copy_(fused.expand_as(mlp.experts.gate_up_proj))
            down = block.mlp.down_proj.weight
            mlp.experts.down_proj.copy_(down.expand_as(mlp.experts.down_proj))
            mlp.gate.weight.copy_(centres[layer])
    return moe


ROUTER_LOSS = 0.01


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save with a tokenizer, in bfloat16; the model is float32 again, with the rounded weights."""
    model.bfloat16().save_pretrained(directory)
    model.float()
    tokenizer.save_pretrained(directory)


@torch.no_grad()
def base_only(moe: MixtralForCausalLM) -> None:
    """Replace every expert by the mean of its layer's experts, in place: all deltas removed.

    The mean is rounded to bfloat16, as it would be stored.
    """
    for block in moe.model.layers:
        for weight in (block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
            weight.copy_(weight.float().mean(0, keepdim=True).bfloat16().expand_as(weight))
