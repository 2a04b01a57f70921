"""Classes for upcycled models that transformers has no class for: the class of a dense family, in
which the FFNs of selected layers are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Phi3ForCausalLM,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    StableLmForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.generic import can_return_tuple

from ders_core.checkpoint.dense import DenseFFN
from ders_core.errors import CheckpointError
from ders_core.hf.moe_ffn import FFNShape, MoeFFN, model_ffns, recorded_routers

DENSE = (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    PhiForCausalLM,
    Phi3ForCausalLM,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    StableLmForCausalLM,
)
"""The dense families. Another one needs a line here, one among the layout's models, and its FFN's
names among the dense layouts."""


@dataclass(kw_only=True)
class MoeFields:
    """Fields of an upcycled model's config besides those of its dense family."""

    moe_layers: list[int] = field(default_factory=list)
    """Numbers of the layers whose FFN is a mixture."""
    num_local_experts: int = 4
    num_experts_per_tok: int = 2
    universal_expert: bool = False
    """Whether there is an always-on FFN besides the experts."""
    norm_topk_prob: bool = True
    """The weights of the chosen experts sum to 1; nothing else is supported."""
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001


class UpcycledModel(PreTrainedModel):
    """Base of the classes of all families. Raises CheckpointError for a config that does not fit
    the model."""

    _can_compile_fullgraph = False  # how many tokens an expert gets is only known at run time

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        ffns = {ffn.layer: ffn for ffn in model_ffns(self)}
        _check(config, ffns)
        for layer in config.moe_layers:
            block = ffns[layer].block
            shape = FFNShape.of(ffns[layer], self.get_submodule(block), config)
            moe = MoeFFN(
                shape, config.num_local_experts, config.num_experts_per_tok, config.universal_expert
            )
            self.set_submodule(block, moe)
        self.post_init()  # initialises what is new


def _check(config: Any, ffns: dict[int, DenseFFN]) -> None:
    """Raise CheckpointError unless the config fits the model."""
    absent = [layer for layer in config.moe_layers if layer not in ffns]
    if absent:
        raise CheckpointError(
            f"moe_layers names layer {absent[0]}, and the model's layers are 0 to {len(ffns) - 1}; "
            "correct config.json"
        )
    if not 1 <= config.num_experts_per_tok <= config.num_local_experts:
        raise CheckpointError(
            f"num_experts_per_tok is {config.num_experts_per_tok} of {config.num_local_experts} "
            "experts; correct config.json"
        )
    if not config.norm_topk_prob:
        raise CheckpointError(
            "norm_topk_prob is false, but an upcycled model's weights sum to 1 over the chosen "
            "experts; correct config.json"
        )


def _with_router_logits(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The dense class's forward, which with `output_router_logits` also gives `router_logits`, of
    each MoE layer `[batch · window, N]`, and with labels `aux_loss`, as Mixtral does."""

    @wraps(forward)  # generate asks for the names of the arguments
    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers is not typed
    def wrapped(
        self: Any, *args: Any, output_router_logits: bool | None = None, **kwargs: Any
    ) -> Any:
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if not output_router_logits:
            return forward(self, *args, return_dict=True, **kwargs)
        with recorded_routers() as logits:
            output = forward(self, *args, return_dict=True, **kwargs)
        output["router_logits"] = tuple(logits)
        if output.loss is not None and logits:
            output["aux_loss"] = load_balancing_loss_func(
                output.router_logits,
                self.config.num_local_experts,
                self.config.num_experts_per_tok,
                kwargs.get("attention_mask"),
            )
            output["loss"] = output.loss + self.config.router_aux_loss_coef * output.aux_loss
        return output

    return wrapped


def _upcycled(dense: Any) -> Any:
    """The upcycled class of a dense model class, with its config class."""
    family = dense.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    config = type(
        f"{family}UpcycledConfig",
        (MoeFields, dense.config_class),
        {"__module__": __name__, "model_type": f"{dense.config_class.model_type}_upcycled"},
    )
    members = {
        "__module__": __name__,
        "config_class": config,
        "forward": _with_router_logits(dense.forward),
    }
    return type(f"{family}UpcycledForCausalLM", (UpcycledModel, dense), members)


UPCYCLED: dict[str, Any] = {dense.config_class.model_type: _upcycled(dense) for dense in DENSE}
"""model_type of the dense family -> class of its upcycled models."""


def register() -> None:
    """Make the classes known to transformers' auto classes; a second call changes nothing."""
    for dense, model in zip(DENSE, UPCYCLED.values(), strict=True):
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        names = get_checkpoint_conversion_mapping(dense.__name__)
        if names is not None:  # a few tensors have other names in files than in the model
            register_checkpoint_conversion_mapping(model.__name__, names, overwrite=True)
        tokenizer = TOKENIZER_MAPPING.get(dense.config_class, None)
        if tokenizer is not None:  # otherwise the tokenizer's files name its class
            AutoTokenizer.register(config, tokenizer, exist_ok=True)
