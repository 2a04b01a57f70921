"""What the user asks for: which codec, how strong, for which experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.later import names_later

if TYPE_CHECKING:
    from ders_core.decompose.bases.clusters import ClusteredBase
    from ders_core.decompose.bases.dense import DenseBase
    from ders_core.recipe.loading import FIRST_PRESET, load_recipe, presets
    from ders_core.recipe.recipe import Recipe
    from ders_core.recipe.rule import BaseRule, OtherRule, Rule

__all__ = [
    "FIRST_PRESET",
    "BaseRule",
    "ClusteredBase",
    "DenseBase",
    "OtherRule",
    "Recipe",
    "Rule",
    "load_recipe",
    "presets",
]

__getattr__ = names_later(
    __name__,
    {
        ".loading": ("FIRST_PRESET", "load_recipe", "presets"),
        ".recipe": ("Recipe",),
        ".rule": ("BaseRule", "OtherRule", "Rule"),
        "ders_core.decompose.bases.clusters": ("ClusteredBase",),
        "ders_core.decompose.bases.dense": ("DenseBase",),
    },
)
