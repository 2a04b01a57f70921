"""From the codecs of each group back to a short list of rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from ders_core.checkpoint.layouts import PROJECTIONS, Projection
from ders_core.codecs import Codec
from ders_core.codecs.group import GroupCodec
from ders_core.recipe.numbers import spell_numbers
from ders_core.recipe.recipe import Recipe
from ders_core.recipe.rule import Rule

Key = tuple[int, str]


def rules_for(codecs: Mapping[Key, GroupCodec]) -> tuple[Rule, ...]:
    """The fewest rules of the form that a person would write: the commonest codec for all, then a
    rule for each other codec and set of projections; several codecs in a group by their experts.
    Resolving them gives `codecs` again."""
    if not codecs:
        return ()
    first = Counter(own.codecs[0] for own in codecs.values()).most_common(1)[0][0]
    rules = [Rule(codec=first)]
    everywhere = {layer for layer, _ in codecs}
    for own in dict.fromkeys(codecs.values()):
        if own.codec == first:
            continue
        by_layer: dict[int, tuple[str, ...]] = {}
        for layer in sorted(everywhere):
            found = tuple(p for p in PROJECTIONS if codecs.get((layer, p)) == own)
            if found:
                by_layer[layer] = found
        for projections in dict.fromkeys(by_layer.values()):
            layers = {layer for layer, found in by_layer.items() if found == projections}
            where = "all" if layers == everywhere else spell_numbers(layers)
            for number, codec in enumerate(own.codecs):
                rules.append(_rule(where, projections, own, number, codec))
    return tuple(rules)


def _rule(
    layers: str, projections: tuple[str, ...], own: GroupCodec, number: int, codec: Codec
) -> Rule:
    experts = "all" if own.codec is not None else spell_numbers(own.members(number))
    return Rule(
        layers=layers,
        projections=cast(tuple[Projection, ...], projections),
        experts=experts,
        codec=codec,
    )


def with_codecs(recipe: Recipe, codecs: Mapping[Key, GroupCodec]) -> Recipe:
    """The recipe with other rules, and the same name, seed and base."""
    return recipe.model_copy(update={"rules": rules_for(codecs)})
