"""Recipes as texts that are kept: each must be readable again."""

from __future__ import annotations

from ders_core.errors import RecipeError
from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.recipe import Recipe


def text_of(recipe: Recipe, most: int = MOST_CHARACTERS) -> str:
    """The YAML of a recipe. Raises RecipeError if it has more than so many characters."""
    text = recipe.to_yaml()
    if len(text) > most:
        raise RecipeError(
            f"the recipe has {len(text)} characters when it is written out, and at most {most} are "
            "taken here; give it fewer rules"
        )
    return text


def recipe_of(text: str, most: int = MOST_CHARACTERS) -> Recipe:
    """The recipe of a text in any form. Raises RecipeError, with the line where it is known, or as
    `text_of`: a text in short forms has fewer characters than its recipe."""
    recipe = Recipe.from_yaml(text)
    text_of(recipe, most)
    return recipe
