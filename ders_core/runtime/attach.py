"""Put the experts of a packed checkpoint into a model of transformers, as they are packed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from ders_core.checkpoint import ExpertGroup
from ders_core.errors import DersError
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedSource
from ders_core.runtime.cache import WeightCache
from ders_core.runtime.experts import PackedExperts
from ders_core.runtime.held import HeldGroup, PackedHeldGroup, WholeGroup
from ders_core.runtime.probe import computes_as_known
from ders_core.runtime.resident import Groups, held_layers

WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters of transformers' modules of experts that groups take the place of."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Attachment:
    """The modules of a model that computes from packed experts, before and after it is loaded.

    modules: layer -> module, whose weights were taken away. taken: the original's tensors that the
    model no longer takes, by name.
    """

    packed: PackedCheckpoint
    layers: Groups
    modules: Mapping[int, Any]
    taken: frozenset[str]

    def hold(
        self, device: torch.device | str, dtype: torch.dtype, cache: WeightCache | None = None
    ) -> None:
        """Read what is packed. cache: see `PackedExperts`. Raises CheckpointError if a file cannot
        be read, CodecError if a part is damaged."""
        coded = {(group.layer, group.projection): group for group in self.packed.manifest.groups}

        def held(group: ExpertGroup) -> HeldGroup:
            if group.key in coded:
                return PackedHeldGroup(self.packed.matrices, coded[group.key], device, dtype)
            return WholeGroup(group.read().to(device, dtype))

        for layer, module in self.modules.items():
            groups = {name: held(group) for name, group in self.layers[layer].items()}
            for holder, name in _weights(module):
                holder.__dict__.pop(name, None)
            module.packed = PackedExperts(groups, cache)


def attach(model: nn.Module, packed: PackedCheckpoint) -> Attachment:
    """Let the experts of a model compute from a packed checkpoint; it takes all other weights as
    any model does, and then what `Attachment.hold` reads.

    model: without weights yet. Raises DersError, before anything is changed, if transformers
    computes this model's experts in a way that is not known here.
    """
    layers = held_layers(packed, open_checkpoint(packed.path))
    modules = dict(_modules(model, layers))
    coded = {(group.layer, group.projection): group for group in packed.manifest.groups}
    otherwise = {
        group.layer
        for groups in layers.values()
        for group in groups.values()
        if group.key in coded and not _is_of(coded[group.key], group)
    }
    missing = (layers.keys() - modules.keys()) | otherwise
    if missing:
        listed = ", ".join(map(str, sorted(missing)[:4]))
        raise DersError(
            f"{packed.path}: transformers computes the experts of layer {listed} of this model in "
            "a way that packed weights do not fit; load it with the mode 'synthesized'"
        )
    taken: set[str] = set()
    for layer, module in modules.items():
        for holder, name in _weights(module):
            if holder._parameters.pop(name, None) is not None:
                setattr(holder, name, torch.empty(0))  # for what draws first weights at random
        module.forward = MethodType(_forward, module)
        taken |= {
            matrix.info.name
            for group in layers[layer].values()
            for matrix in group.experts[: module.num_experts]
        }
    return Attachment(packed, layers, modules, frozenset(taken))


def _is_of(coded: PackedGroup, group: ExpertGroup) -> bool:
    """Whether it was packed from where the layout of today says that the group lies."""
    places = [PackedSource.of(matrix) for matrix in group.experts]
    return places == list(coded.experts[: len(places)])


def _forward(
    self: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """In the place of the method of a module of experts."""
    result: torch.Tensor = self.packed.compute(self, hidden_states, top_k_index, top_k_weights)
    return result


def _weights(module: Any) -> Iterator[tuple[Any, str]]:
    """What holds the weights of a module of experts, and under which names."""
    if not hasattr(module, "projections"):
        yield from ((module, name) for name in WEIGHTS)
        return
    for linears in module.projections().values():
        yield from ((linear, "weight") for linear in linears)


def _modules(model: nn.Module, layers: Groups) -> Iterator[tuple[int, Any]]:
    """(layer, module) of the modules that hold the experts of these layers: those that compute as
    transformers' `use_experts_implementation` says, or as `ders_core.hf.moe_ffn.Experts`, with
    weights of the groups' shapes."""
    found: dict[int, list[Any]] = {}
    for name, module in model.named_modules():
        numbers = _NUMBER.findall(name)
        is_like_transformers = hasattr(module, "is_transposed") or hasattr(module, "projections")
        if numbers and hasattr(module, "_apply_gate") and is_like_transformers:
            layer = int(numbers[-1])
            if layer in layers and _fits(module, layers[layer]):
                found.setdefault(layer, []).append(module)
    known: dict[type, bool] = {}
    for layer, modules in found.items():
        module, kind = modules[0], type(modules[0])
        if kind not in known:
            known[kind] = hasattr(module, "projections") or computes_as_known(module)
        if len(modules) == 1 and known[kind]:
            yield layer, module


def _fits(module: Any, groups: Mapping[str, ExpertGroup]) -> bool:
    """Whether the module's weights have the shapes of the groups."""
    if hasattr(module, "projections"):
        held = module.projections()
        return held.keys() == groups.keys() and all(
            linear.weight.shape == groups[name].shape[1:]
            for name, linears in held.items()
            for linear in linears
        )
    projections = {"gate", "up", "down"} if module.has_gate else {"up", "down"}
    if groups.keys() != projections:
        return False
    wanted = {"down_proj": groups["down"].shape[1:]}
    out, width = groups["up"].shape[1:]
    wanted["gate_up_proj" if module.has_gate else "up_proj"] = (
        (2 * out, width) if module.has_gate else (out, width)
    )
    for name, (rows, columns) in wanted.items():
        parameter = getattr(module, name, None)
        shape = (columns, rows) if module.is_transposed else (rows, columns)
        if parameter is None or tuple(parameter.shape) != (module.num_experts, *shape):
            return False
    return all(group.shape[0] >= module.num_experts for group in groups.values())
