"""From a codec per group back to a short list of rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import cast

from ders_core.checkpoint.layouts import PROJECTIONS, Projection
from ders_core.codecs import DeltaCodec
from ders_core.recipe import Recipe, Rule

Key = tuple[int, str]


def spell_layers(layers: Iterable[int]) -> str:
    """[0, 1, 2, 5] as '0-2,5'."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def rules_for(codecs: Mapping[Key, DeltaCodec]) -> tuple[Rule, ...]:
    """The fewest rules of the form that a person would write: the commonest codec for all, then a
    rule for each other codec and set of projections. Resolving them gives `codecs` again."""
    if not codecs:
        return ()
    commonest = Counter(codecs.values()).most_common(1)[0][0]
    rules = [Rule(codec=commonest)]
    everywhere = {layer for layer, _ in codecs}
    for codec in dict.fromkeys(codecs.values()):
        if codec == commonest:
            continue
        by_layer: dict[int, tuple[str, ...]] = {}
        for layer in sorted(everywhere):
            own = tuple(p for p in PROJECTIONS if codecs.get((layer, p)) == codec)
            if own:
                by_layer[layer] = own
        for projections in dict.fromkeys(by_layer.values()):
            layers = {layer for layer, own in by_layer.items() if own == projections}
            rules.append(
                Rule(
                    layers="all" if layers == everywhere else spell_layers(layers),
                    projections=cast(tuple[Projection, ...], projections),
                    codec=codec,
                )
            )
    return tuple(rules)


def with_codecs(recipe: Recipe, codecs: Mapping[Key, DeltaCodec]) -> Recipe:
    """The recipe with other rules, and the same name, seed and base."""
    return recipe.model_copy(update={"rules": rules_for(codecs)})
