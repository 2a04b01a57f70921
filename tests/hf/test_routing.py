"""Which experts tokens are given, against what reaches the experts: seen by hooks of the test's
own, or repeated from the routers' weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from ders_core.hf.routing import NONE, recorded_choices
from ders_core.hf.upcycled import UPCYCLED

EXPERTS, TOP_K, VOCABULARY = 8, 2, 64
ROWS = torch.randint(3, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(1))
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "num_experts_per_tok": TOP_K,
}


def deepseek_v3() -> Any:
    config = transformers.DeepseekV3Config(
        moe_intermediate_size=24,
        n_routed_experts=EXPERTS,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=0,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        **SIZES,
    )
    return transformers.DeepseekV3ForCausalLM(config)


def ernie() -> Any:
    config = transformers.Ernie4_5_MoeConfig(
        moe_num_experts=EXPERTS,
        moe_k=TOP_K,
        moe_intermediate_size=24,
        moe_layer_start_index=0,
        moe_layer_end_index=1,
        **{key: value for key, value in SIZES.items() if key != "num_experts_per_tok"},
    )
    return transformers.Ernie4_5_MoeForCausalLM(config)


def hunyuan() -> Any:
    """Whose config lists a top-k for each layer."""
    sizes = {key: value for key, value in SIZES.items() if key != "num_experts_per_tok"}
    config = transformers.HunYuanMoEV1Config(
        num_experts=EXPERTS, moe_topk=[TOP_K] * 2, head_dim=8, **sizes
    )
    return transformers.HunYuanMoEV1ForCausalLM(config)


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(num_local_experts=EXPERTS, **SIZES)
    )


BIASED: dict[str, Callable[[], Any]] = {
    "deepseek_v3": deepseek_v3,
    "ernie4_5_moe": ernie,
    "hunyuan": hunyuan,
    "mixtral": mixtral,
}
"""Families that give their experts numbers; those of them that correct the router's scores are
made to choose otherwise than the scores do."""


def prepared(model: Any) -> Any:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if "correction" in name or "expert_bias" in name:
                weight.copy_(torch.linspace(0, 2, weight.numel()).view(weight.shape))
            elif weight.is_floating_point() and weight.dim() > 1:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def recorded(model: Any, **inputs: Any) -> torch.Tensor | None:
    with torch.inference_mode(), recorded_choices(model) as choices:
        model(**({"input_ids": ROWS, "use_cache": False} | inputs))
    return choices.take(ROWS.numel())


def as_sets(chosen: torch.Tensor) -> list[list[set[int]]]:
    return [[set(row) - {NONE} for row in layer] for layer in chosen.tolist()]


@pytest.mark.parametrize("family", BIASED)
def test_the_experts_numbers_are_those_they_were_called_with(family: str) -> None:
    model = prepared(BIASED[family]())
    called: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(
                lambda module, args, kwargs: called.append(
                    kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
                ),
                with_kwargs=True,
            )
    chosen = recorded(model)
    assert chosen is not None
    assert chosen.shape == (2, ROWS.numel(), TOP_K)
    assert torch.equal(chosen, torch.stack(called))


def test_a_correction_decides_and_not_the_scores() -> None:
    """So that top-k of the scores, which used to be compared, would be wrong here."""
    model = prepared(deepseek_v3())
    scores: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(
            lambda block, args: scores.append(args[0].flatten(0, 1) @ block.gate.weight.T)
        )
    chosen = recorded(model)
    assert chosen is not None
    by_score = torch.stack(scores).topk(TOP_K, -1).indices
    assert as_sets(by_score) != as_sets(chosen)


def test_rows_of_zeros_were_not_chosen() -> None:
    """Llama 4 gives every expert every token, multiplied with 0 where it was not chosen."""
    config = transformers.Llama4TextConfig(
        num_local_experts=EXPERTS,
        interleave_moe_layer_step=1,
        intermediate_size_mlp=48,
        head_dim=8,
        **SIZES,
    )
    model = prepared(transformers.Llama4ForCausalLM(config))
    wanted: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.feed_forward.register_forward_pre_hook(
            lambda block, args: wanted.append(
                (args[0].flatten(0, 1) @ block.router.weight.T).topk(TOP_K).indices
            )
        )
    chosen = recorded(model)
    assert chosen is not None
    assert as_sets(chosen) == as_sets(torch.stack(wanted))


def test_rows_sorted_by_expert_are_found_again() -> None:
    """JetMoE; the experts of its attention are not counted."""
    sizes = SIZES | {"num_key_value_heads": 2, "kv_channels": 8}
    sizes.pop("num_attention_heads")
    config = transformers.JetMoeConfig(num_local_experts=EXPERTS, **sizes)
    model = prepared(transformers.JetMoeForCausalLM(config))
    wanted: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(
            lambda block, args: wanted.append(
                (args[0].flatten(0, 1) @ block.router.layer.weight.T).topk(TOP_K).indices
            )
        )
    chosen = recorded(model)
    assert chosen is not None
    assert as_sets(chosen) == as_sets(torch.stack(wanted))


def test_a_mask_and_a_full_expert() -> None:
    """Switch drops tokens beyond an expert's capacity, sequence by sequence."""
    config = transformers.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=EXPERTS,
        expert_capacity=2,
    )
    model = prepared(transformers.SwitchTransformersForConditionalGeneration(config))
    masks: list[torch.Tensor] = []
    for module in model.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            module.register_forward_hook(lambda module, args, output: masks.append(output[0]))
    chosen = recorded(model, decoder_input_ids=ROWS)
    assert chosen is not None
    assert bool((chosen == NONE).any())
    wanted = [
        [set(row.nonzero()[:, 0].tolist()) for row in mask.flatten(0, 1).bool()] for mask in masks
    ]
    assert as_sets(chosen) == wanted


@pytest.mark.parametrize("universal", [False, True])
def test_our_own_classes(universal: bool) -> None:
    config = UPCYCLED["llama"].config_class(
        moe_layers=[0, 1], num_local_experts=EXPERTS, universal_expert=universal, **SIZES
    )
    model = prepared(UPCYCLED["llama"](config))
    wanted: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(
            lambda block, args: wanted.append(
                (args[0].flatten(0, 1) @ block.gate.weight.T).topk(TOP_K).indices
            )
        )
    chosen = recorded(model)
    assert chosen is not None
    assert as_sets(chosen) == as_sets(torch.stack(wanted))


# --- blocks as models with code of their own have them -------------------------------------------


class Block(nn.Module):
    """sparse: each expert gets its tokens alone; otherwise all, weighted afterwards."""

    def __init__(self, sparse: bool, top_k: int = TOP_K) -> None:
        super().__init__()
        self.sparse, self.top_k = sparse, top_k
        self.gate = nn.Linear(16, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        weights, chosen = self.gate(tokens).softmax(-1).topk(self.top_k)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            hits = chosen == number
            share = (weights * hits).sum(-1, keepdim=True)
            if self.sparse:
                picked = hits.any(-1)
                if bool(picked.any()):
                    out[picked] += share[picked] * expert(tokens[picked])
            else:
                out += share * expert(tokens)
        return out.view_as(x)


def test_experts_that_are_modules_of_their_own() -> None:
    torch.manual_seed(0)
    one, other, x = Block(sparse=True), Block(sparse=True), torch.randn(2, 9, 16)
    model = nn.Sequential(one, other)
    x[1, 3] = x[0, 5]  # two tokens alike
    with torch.no_grad(), recorded_choices(model) as choices:
        first = one.gate(x).topk(TOP_K).indices.flatten(0, 1)
        between = one(x)
        second = other.gate(between).topk(TOP_K).indices.flatten(0, 1)
        choices.take(18)
        model(x)
    chosen = choices.take(18)
    assert chosen is not None
    assert as_sets(chosen) == as_sets(torch.stack([first, second]))
    assert choices.take(18) is None  # it was taken


@pytest.mark.parametrize(
    "model",
    [Block(sparse=False), Block(sparse=True, top_k=EXPERTS), nn.Sequential(nn.Linear(16, 16))],
    ids=["all experts compute all tokens", "all are chosen", "no experts"],
)
def test_what_cannot_be_seen_is_none(model: nn.Module) -> None:
    with torch.no_grad(), recorded_choices(model) as choices:
        model(torch.randn(2, 9, 16))
    assert choices.take(18) is None


def test_one_unseen_layer_makes_all_unseen() -> None:
    model = nn.Sequential(Block(sparse=True), Block(sparse=False))
    with torch.no_grad(), recorded_choices(model) as choices:
        model(torch.randn(2, 9, 16))
    assert choices.take(18) is None


def test_an_expert_twice_for_a_token_is_no_choice() -> None:
    """transformers 5.23 takes NLLB's mask of chosen experts for their numbers."""
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    steps = {"encoder_sparse_step": 1, "decoder_sparse_step": 1, "num_experts": 4}
    config = transformers.NllbMoeConfig(
        vocab_size=VOCABULARY, d_model=32, **sizes, **heads, **steps
    )
    model = prepared(transformers.NllbMoeForConditionalGeneration(config))
    assert recorded(model, decoder_input_ids=ROWS) is None


def test_hooks_are_gone_afterwards() -> None:
    model = Block(sparse=True)
    with recorded_choices(model):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
