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
"""Layer and projection of a group."""


def rules_for(codecs: Mapping[Key, GroupCodec]) -> tuple[Rule, ...]:
    """A short list of rules, as a person would write it: the commonest codec for all, then a rule
    for each other codec and set of projections; several codecs in a group by their experts.
    Resolving the rules gives `codecs` again."""
    if not codecs:
        return ()
    first = Counter(group.codecs[0] for group in codecs.values()).most_common(1)[0][0]
    rules = [Rule(codec=first)]
    everywhere = {layer for layer, _ in codecs}
    for group in dict.fromkeys(codecs.values()):
        if group.codec == first:
            continue
        by_layer: dict[int, tuple[str, ...]] = {}
        for layer in sorted(everywhere):
            projections = tuple(p for p in PROJECTIONS if codecs.get((layer, p)) == group)
            if projections:
                by_layer[layer] = projections
        for projections in dict.fromkeys(by_layer.values()):
            layers = {layer for layer, others in by_layer.items() if others == projections}
            where = "all" if layers == everywhere else spell_numbers(layers)
            for number, codec in enumerate(group.codecs):
                rules.append(_rule(where, projections, group, number, codec))
    return tuple(rules)


def _rule(
    layers: str, projections: tuple[str, ...], group: GroupCodec, number: int, codec: Codec
) -> Rule:
    experts = "all" if group.codec is not None else spell_numbers(group.members(number))
    return Rule(
        layers=layers,
        projections=cast(tuple[Projection, ...], projections),
        experts=experts,
        codec=codec,
    )


def with_codecs(recipe: Recipe, codecs: Mapping[Key, GroupCodec]) -> Recipe:
    """The recipe with other rules, and the same name, seed and base. Raises RecipeError if a codec
    needs a calibration and the recipe has none."""
    return recipe.changed(rules=rules_for(codecs))
