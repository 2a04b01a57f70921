"""An allocation as an ordinary recipe, in rules as a person would write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ders_core.checkpoint import Checkpoint, OtherTensor
from ders_core.codecs import Codec, Keep
from ders_core.codecs.group import GroupCodec
from ders_core.recipe import BaseRule, OtherRule, Recipe
from ders_core.recipe.budget import names_apart
from ders_core.recipe.numbers import spell_numbers
from ders_core.recipe.rule import MOST_NAMES
from ders_core.recipe.summarise import rules_for
from ders_core.tune.allocate import Allocation
from ders_core.tune.coupling import Key


def as_recipe(
    allocation: Allocation, checkpoint: Checkpoint, calibration: Path, *, name: str = "tuned"
) -> Recipe:
    """The recipe whose plan has the allocation's codecs. calibration: the one that was scored with.

    Neighbours with the same codec share a rule: layers of a projection, experts of a group, tensors
    of a kind. Reads headers only.
    """
    experts: dict[Key, list[Codec]] = {}
    bases: dict[Key, GroupCodec] = {}
    others: dict[str, Codec] = {}
    for each in allocation.chosen:
        unit = each.scored.unit
        codec = Keep() if each.candidate is None else each.candidate.codec
        if unit.group is None:
            others[unit.name] = codec
        elif unit.part == "base":
            bases[unit.group] = GroupCodec.same(codec, 1)
        else:
            experts.setdefault(unit.group, []).append(codec)
    groups = {key: _group_codec(codecs, checkpoint, key) for key, codecs in experts.items()}
    return Recipe(
        name=name,
        calibration=calibration,
        rules=rules_for(groups),
        base_codec=tuple(
            BaseRule(layers=rule.layers, projections=rule.projections, codec=rule.codec)
            for rule in rules_for(bases)
        ),
        base_error="shared",
        others=_other_rules(others, checkpoint),
    )


def _group_codec(codecs: Sequence[Codec], checkpoint: Checkpoint, key: Key) -> GroupCodec:
    """codecs: of each expert, or one for all."""
    if len(codecs) == 1:
        return GroupCodec.same(codecs[0], checkpoint.group(*key).shape[0])
    return GroupCodec.of(codecs)


def _other_rules(codecs: Mapping[str, Codec], checkpoint: Checkpoint) -> tuple[OtherRule, ...]:
    """A rule for the commonest codec of each kind, then for the tensors that have another: those of
    one name in several layers together."""
    tensors = [checkpoint.others[name] for name in codecs]
    rules = list[OtherRule]()
    for kind in dict.fromkeys(tensor.kind for tensor in tensors):
        of_kind = [tensor for tensor in tensors if tensor.kind == kind]
        first = Counter(codecs[tensor.name] for tensor in of_kind).most_common(1)[0][0]
        rules.append(OtherRule(kinds=(kind,), codec=first))
        rest = [tensor for tensor in of_kind if codecs[tensor.name] != first]
        for codec in dict.fromkeys(codecs[tensor.name] for tensor in rest):
            same = [tensor for tensor in rest if codecs[tensor.name] == codec]
            rules += _rules_of(same, codec, tensors)
    return tuple(rules)


def _rules_of(
    tensors: Sequence[OtherTensor], codec: Codec, all_tensors: Sequence[OtherTensor]
) -> list[OtherRule]:
    """Rules that give a codec to these tensors and to no others."""
    by_pattern: dict[str, list[OtherTensor]] = {}
    apart = list[str]()
    for tensor in tensors:
        pattern = _pattern(tensor)
        if pattern is None:
            apart.append(tensor.name)
        else:
            by_pattern.setdefault(pattern, []).append(tensor)
    rules = list[OtherRule]()
    for pattern, alike in by_pattern.items():
        layers = spell_numbers({tensor.layer for tensor in alike if tensor.layer is not None})
        rule = OtherRule(layers=layers, names=(pattern,), codec=codec)
        selected = [tensor for tensor in all_tensors if rule.selects(tensor)]
        if len(selected) == len(alike):
            rules.append(rule)
        else:  # the numbers in names are not those of layers
            apart += [tensor.name for tensor in alike]
    rules += [OtherRule(names=names, codec=codec) for names in names_apart(apart, MOST_NAMES)]
    return rules


def _pattern(tensor: OtherTensor) -> str | None:
    """The name with a star in the place of the layer's number; None outside of the layers."""
    number = f".{tensor.layer}."
    if tensor.layer is None or tensor.name.count(number) != 1 or set(tensor.name) & set("*?["):
        return None
    return tensor.name.replace(number, ".*.")
