"""Replaces the FFNs of a dense model in memory by experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from ders_core.checkpoint.dense import DenseFFN
from ders_core.codecs.coding.prng import expert_seed
from ders_core.errors import CheckpointError, RecipeError
from ders_core.hf.moe_ffn import FFNShape, model_ffns
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.experts import ExpertLinear
from ders_core.upcycle.moe_block import UNIVERSAL_SHARE, UpcycledFFN


@dataclass(frozen=True)
class Site:
    """The FFN of a layer in a model. path: its module."""

    layer: int
    path: str
    ffn: DenseFFN

    def matrix(self, model: nn.Module, projection: str) -> torch.Tensor:
        """A projection's weight `[out, in]`, as a view of the model's parameter."""
        weight = self.ffn.weights[projection]
        flat = model.get_parameter(weight.tensor).detach().reshape(-1)
        return weight.slot.view(flat)

    def bias(self, model: nn.Module, projection: str) -> torch.Tensor | None:
        """A projection's bias `[out]`."""
        weight = self.ffn.weights[projection]
        module = model.get_submodule(weight.tensor.rpartition(".")[0])
        bias = getattr(module, "bias", None)
        return None if bias is None else bias.detach()

    def shape(self, model: PreTrainedModel) -> FFNShape:
        """With activation and dropout."""
        return FFNShape.of(self.ffn, model.get_submodule(self.path), model.config)


def find_sites(model: PreTrainedModel) -> list[Site]:
    """Every FFN of a dense model, by layer. Raises CheckpointError if its module holds more."""
    sites = [Site(ffn.layer, ffn.block, ffn) for ffn in model_ffns(model)]
    for site in sites:
        module = model.get_submodule(site.path)
        held = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
        known = {
            matrix.tensor.removeprefix(f"{site.path}.").rpartition(".")[0]
            for matrix in site.ffn.weights.values()
        }
        if held != known:
            raise CheckpointError(
                f"{site.path} of the model holds {', '.join(sorted(held - known))} besides its "
                "FFN, so it cannot be replaced by experts"
            )
    return sorted(sites, key=lambda site: site.layer)


def upcycle_model(
    model: PreTrainedModel, config: UpcycleConfig, routers: dict[int, torch.Tensor]
) -> dict[int, UpcycledFFN]:
    """Replace the FFNs of the chosen layers in place; layer -> its block.

    routers: layer -> `[experts, hidden]`, their start. What is not trained gets no gradient.
    Raises RecipeError if the configuration does not fit the model.
    """
    sites = find_sites(model)
    chosen = config.chosen_layers(len(sites))
    model.requires_grad_(False)
    for parameter in named_parameters(model, config.train):
        parameter.requires_grad_(True)
    blocks: dict[int, UpcycledFFN] = {}
    for site in sites:
        if site.layer in chosen:
            block = _block(model, site, config, routers[site.layer])
            blocks[site.layer] = block.train(model.training)
            model.set_submodule(site.path, block)
    return blocks


def module_paths(model: nn.Module, blocks: Mapping[int, UpcycledFFN]) -> dict[int, str]:
    """Layer -> the path of its block in the model."""
    names = {id(module): name for name, module in model.named_modules()}
    return {layer: names[id(block)] for layer, block in blocks.items()}


def named_parameters(model: nn.Module, patterns: tuple[str, ...]) -> Iterator[nn.Parameter]:
    """The parameters that match a pattern, made float32. Raises RecipeError for a pattern without a
    match."""
    for pattern in patterns:
        named = [each for name, each in model.named_parameters() if fnmatchcase(name, pattern)]
        if not named:
            raise RecipeError(
                f"train names {pattern!r}, but no parameter of the model is called so; a name is "
                f"such as {next(iter(dict(model.named_parameters())))!r}"
            )
        for parameter in named:
            parameter.data = parameter.data.float()
            yield parameter


def _block(
    model: PreTrainedModel, site: Site, config: UpcycleConfig, router: torch.Tensor
) -> UpcycledFFN:
    experts = config.experts + config.universal
    projections = {}
    for name in site.ffn.weights:
        weight, bias = site.matrix(model, name).float().contiguous(), site.bias(model, name)
        share = UNIVERSAL_SHARE if config.universal and name == "down" else 1.0
        biases = None if bias is None else (bias.float() * share).expand(experts, -1).clone()
        linear = expert_linear(weight * share, biases, experts, name, site.layer, config)
        if config.base == "frozen" and linear.base is not None:
            linear.base.requires_grad_(False)
        projections[name] = linear
    shape = site.shape(model)
    block = UpcycledFFN(
        projections,
        router.float().to(weight.device),
        top_k=config.top_k,
        universal=config.universal,
        activation=ACT2FN[shape.activation],
        dropout=shape.dropout,
    )
    if not config.router.train:
        block.router.requires_grad_(False)
    return block


def expert_linear(
    weight: torch.Tensor,
    biases: torch.Tensor | None,
    experts: int,
    projection: str,
    layer: int,
    config: UpcycleConfig,
) -> ExpertLinear:
    """One projection as it starts. weight: `[out, in]` float32; biases: `[experts, out]`."""
    noise = config.noise * float(weight.square().mean().sqrt())
    seeds = [expert_seed(config.seed, layer, projection, expert) for expert in range(experts)]
    return config.form(projection).start(weight, biases, seeds, noise)
