"""What the user asks for: which codec, how strong, for which experts."""

from ders_core.recipe.presets import load_recipe, presets
from ders_core.recipe.recipe import ClusteredBase, DenseBase, Recipe, Rule

__all__ = ["ClusteredBase", "DenseBase", "Recipe", "Rule", "load_recipe", "presets"]
