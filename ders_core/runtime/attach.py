"""Put the experts of a packed checkpoint into a model of transformers, as they are packed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from ders_core.runtime.forms.form import ExpertsForm
from ders_core.runtime.held import HeldGroup, PackedHeldGroup, WholeGroup
from ders_core.runtime.resident import Groups, held_layers
from ders_core.runtime.seats import seats_of


@dataclass(frozen=True)
class Attachment:
    """The modules of a model that computes from packed experts, before and after it is loaded.

    seats: layer -> forms of its modules, whose weights were taken away; of several, all hold the
    same weights. taken: the original's tensors that the model no longer takes, by name.
    """

    packed: PackedCheckpoint
    layers: Groups
    seats: Mapping[int, Sequence[ExpertsForm]]
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

        for layer, forms in self.seats.items():
            groups = {name: held(group) for name, group in self.layers[layer].items()}
            for form in forms:
                for holder, name in form.weights():
                    holder.__dict__.pop(name, None)
                form.module.packed = PackedExperts(form, groups, cache)


def attach(model: nn.Module, packed: PackedCheckpoint) -> Attachment:
    """Let the experts of a model compute from a packed checkpoint; it takes all other weights as
    any model does, and then what `Attachment.hold` reads.

    model: without weights yet. Raises DersError, before anything is changed, if transformers
    computes this model's experts in a way that is not known here.
    """
    found = held_layers(packed, open_checkpoint(packed.path))
    seats = seats_of(model, found)
    layers = {
        layer: groups
        for layer, groups in found.items()
        if layer in seats or not _is_left(model, groups)
    }
    coded = {(group.layer, group.projection): group for group in packed.manifest.groups}
    otherwise = {
        group.layer
        for groups in layers.values()
        for group in groups.values()
        if group.key in coded and not _is_of(coded[group.key], group)
    }
    missing = (layers.keys() - seats.keys()) | otherwise
    if missing:
        listed = ", ".join(map(str, sorted(missing)[:4]))
        raise DersError(
            f"{packed.path}: transformers computes the experts of layer {listed} of this model in "
            "a way that packed weights do not fit; load it with the mode 'synthesized'"
        )
    taken: set[str] = set()
    for layer, forms in seats.items():
        for form in forms:
            _take_weights(form)
        for group in layers[layer].values():
            taken.update(_taken_names(group, forms[0]))
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for target, source in [*ties.items()]:
        if not {target, source} <= names:
            del ties[target]
    return Attachment(packed, layers, seats, frozenset(taken))


def _is_left(model: nn.Module, groups: Mapping[str, ExpertGroup]) -> bool:
    """Whether the class says that it leaves these tensors on disk if it has no place for them, as
    it does with layers that predict further tokens."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    names = (group.experts[0].info.name for group in groups.values())
    return all(any(re.search(pattern, name) for pattern in patterns) for name in names)


def _is_of(coded: PackedGroup, group: ExpertGroup) -> bool:
    """Whether it was packed from where the layout of today says that the group lies."""
    places = [PackedSource.of(matrix) for matrix in group.experts]
    return places == list(coded.experts[: len(places)])


def _take_weights(form: ExpertsForm) -> None:
    """Leave the module without weights, and with another forward pass."""
    for holder, name in form.weights():
        if holder._parameters.pop(name, None) is not None:
            setattr(holder, name, torch.empty(0))  # for what draws first weights at random
    form.module.forward = MethodType(_forward, form.module)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of the method of a module of experts."""
    return self.packed.form.forward(self.packed.compute, *args, **kwargs)


def _taken_names(group: ExpertGroup, form: ExpertsForm) -> set[str]:
    """The original's tensors that a group holds, and those of experts without a product."""
    names = [matrix.info.name for matrix in group.experts[: form.num_experts]]
    taken = set(names)
    if form.surplus and len(taken) > 1:
        prefix, suffix = _around_number(names[0], names[1])
        numbers = range(len(names), len(names) + form.surplus)
        taken |= {f"{prefix}{number}{suffix}" for number in numbers}
    return taken


def _around_number(first: str, second: str) -> tuple[str, str]:
    """What stands before and after the one digit in which two names differ."""
    place = next(n for n, pair in enumerate(zip(first, second, strict=True)) if len({*pair}) > 1)
    return first[:place], first[place + 1 :]
