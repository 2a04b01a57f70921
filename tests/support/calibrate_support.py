"""Tiny models of unlike MoE families, and what calibration should find in them, told independently.

The reference hooks the input of each MoE block, repeats the router's choice, and computes every
expert's activation in float64 from the weights on disk. It shares no code with `calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.hf import load_model, load_tokenizer
from ders_core.packed.open import open_checkpoint

WINDOW, TOKENS = 32, 310
"""Ten windows of 31 predicted tokens."""

Activation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def swish(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate * gate.sigmoid() * up


def clamped(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """GPT-OSS's own, with its limit of 7."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * (1.702 * gate).sigmoid() * (up + 1)


def rectified(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return up.relu()


@dataclass(frozen=True)
class Tiny:
    """A family. blocks: the MoE blocks' names in the model, in the checkpoint's order of layers.
    router: the router's name within. scales_input: whether an expert's input is multiplied with
    the router's score (Llama 4)."""

    build: Callable[[], Any]
    blocks: Sequence[str]
    router: str
    top_k: int = 2
    activation: Activation = swish
    scales_input: bool = False

    def save(self, directory: Path, tokenizer: Any) -> Path:
        torch.manual_seed(3)
        model = self.build().eval()
        with torch.no_grad():
            for weight in model.parameters():
                if bool((weight == 0).all()):  # biases, and what is left to a checkpoint
                    weight.normal_(std=0.1)
        model.to(torch.bfloat16).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory


SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def mixtral() -> Any:
    config = transformers.MixtralConfig(num_local_experts=4, **SIZES)
    return transformers.MixtralForCausalLM(config)


def vanilla() -> Any:
    """As an upcycling leaves it: all experts of a layer are one."""
    model = mixtral()
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.copy_(weight[:1].clone().expand_as(weight))
    return model


def qwen2_moe() -> Any:
    config = transformers.Qwen2MoeConfig(
        num_experts=6,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        **SIZES,
    )
    return transformers.Qwen2MoeForCausalLM(config)


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(num_local_experts=4, head_dim=8, **SIZES)
    return transformers.GptOssForCausalLM(config)


def llama4() -> Any:
    config = transformers.Llama4TextConfig(
        num_local_experts=4,
        interleave_moe_layer_step=1,
        intermediate_size_mlp=48,
        head_dim=8,
        **SIZES | {"num_experts_per_tok": 1},
    )
    return transformers.Llama4ForCausalLM(config)


def dbrx() -> Any:
    config = transformers.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=512,
        vocab_size=384,
        attn_config={"rope_theta": 10_000.0, "clip_qkv": 8.0, "kv_n_heads": 2},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    )
    return transformers.DbrxForCausalLM(config)


def granitemoe() -> Any:
    config = transformers.GraniteMoeConfig(num_local_experts=4, **SIZES)
    return transformers.GraniteMoeForCausalLM(config)


T5_SIZES = {
    "vocab_size": 384,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_experts": 4,
}


def switch() -> Any:
    config = transformers.SwitchTransformersConfig(**T5_SIZES)
    return transformers.SwitchTransformersForConditionalGeneration(config)


FAMILIES = {
    "mixtral": Tiny(mixtral, ["model.layers.0.mlp", "model.layers.1.mlp"], "gate"),
    "vanilla": Tiny(vanilla, ["model.layers.0.mlp", "model.layers.1.mlp"], "gate"),
    "qwen2_moe": Tiny(qwen2_moe, ["model.layers.0.mlp", "model.layers.1.mlp"], "gate"),
    "gpt_oss": Tiny(
        gpt_oss, ["model.layers.0.mlp", "model.layers.1.mlp"], "router", activation=clamped
    ),
    "llama4": Tiny(
        llama4,
        ["model.layers.0.feed_forward", "model.layers.1.feed_forward"],
        "router",
        top_k=1,
        scales_input=True,
    ),
    "dbrx": Tiny(dbrx, ["transformer.blocks.0.ffn", "transformer.blocks.1.ffn"], "router.layer"),
    "granitemoe": Tiny(
        granitemoe,
        ["model.layers.0.block_sparse_moe", "model.layers.1.block_sparse_moe"],
        "router",
    ),
    "switch": Tiny(
        switch,
        [
            f"{part}.block.{n}.layer.{at}.mlp"
            for part, at in (("encoder", 1), ("decoder", 2))
            for n in (0, 1)
        ],
        "router.classifier",
        top_k=1,
        activation=rectified,
    ),
}


@dataclass(frozen=True)
class Expected:
    """Of one layer, in float64."""

    block_input: torch.Tensor
    middle: torch.Tensor
    routed: torch.Tensor


def windows_of(directory: Path, text: Path) -> torch.Tensor:
    tokens = load_tokenizer(directory)(text.read_text(encoding="utf-8"))["input_ids"]
    count = TOKENS // (WINDOW - 1)
    return torch.tensor(tokens[: count * WINDOW]).view(count, WINDOW)


@torch.inference_mode()
def expected(directory: Path, tiny: Tiny, text: Path) -> list[Expected]:
    """For each layer that has experts."""
    model = load_model(directory, dtype=torch.float32)
    caught: dict[str, torch.Tensor] = {}
    for name in tiny.blocks:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: caught.update(
                {name: (args[0] if args else kwargs["hidden_states"]).flatten(0, 1).double()}
            ),
            with_kwargs=True,
        )
    inputs = {"input_ids": windows_of(directory, text)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    model(**inputs)
    checkpoint = open_checkpoint(directory)
    named = [name for name in tiny.blocks if hasattr(model.get_submodule(name), "experts")]
    assert len(named) == len(checkpoint.moe_layers)
    return [
        _layer(model.get_submodule(name), caught[name], checkpoint, layer, tiny)
        for name, layer in zip(named, checkpoint.moe_layers, strict=True)
    ]


def _layer(block: Any, x: torch.Tensor, checkpoint: Checkpoint, layer: int, tiny: Tiny) -> Expected:
    router = block.get_submodule(tiny.router)
    scores = x @ router.weight.double().T
    if getattr(router, "bias", None) is not None:
        scores = scores + router.bias.double()
    chosen = scores.topk(tiny.top_k, -1).indices  # [tokens, k]
    groups = {g.projection: g for g in checkpoint.groups() if g.layer == layer}
    ins, mids, routed = [], [], []
    for expert in range(groups["down"].shape[0]):
        picked = (chosen == expert).any(-1)
        inputs = x[picked]
        if tiny.scales_input:
            inputs = inputs * scores[picked, expert, None].sigmoid()
        up = _times(inputs, groups["up"], expert)
        gate = _times(inputs, groups["gate"], expert) if "gate" in groups else up
        ins.append(inputs)
        mids.append(tiny.activation(gate, up))
        routed.append(int(picked.sum()))
    return Expected(_mean(ins), _mean(mids), torch.tensor(routed))


def _times(x: torch.Tensor, group: ExpertGroup, expert: int) -> torch.Tensor:
    product = x @ group.read(expert).double().T
    return product + group.read_biases()[expert].double() if group.biases else product


def _mean(rows: list[torch.Tensor]) -> torch.Tensor:
    joined = torch.cat(rows)
    return joined.T @ joined / len(joined)
