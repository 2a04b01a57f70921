"""What the user asks for: which codec, how strong, for which experts."""

from ders_core.decompose.bases.clusters import ClusteredBase
from ders_core.decompose.bases.dense import DenseBase
from ders_core.recipe.loading import FIRST_PRESET, load_recipe, presets
from ders_core.recipe.recipe import Recipe
from ders_core.recipe.rule import Rule

__all__ = [
    "FIRST_PRESET",
    "ClusteredBase",
    "DenseBase",
    "Recipe",
    "Rule",
    "load_recipe",
    "presets",
]
