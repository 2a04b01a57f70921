"""The recipes that ship with the package, and those in files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ders_core.errors import RecipeError
from ders_core.files.missing import cleaned, exists, local_path, printable
from ders_core.files.package_data import shipped
from ders_core.recipe.recipe import Recipe
from ders_core.recipe.yaml_text import read_file

FIRST_PRESET = "unbiased-1.3bit"
"""What a new recipe starts from."""

LEADING = (FIRST_PRESET, "unbiased-0.6bit", "unbiased-0.2bit")
"""Presets that lose least at their sizes: they come first."""


@cache
def presets() -> dict[str, Recipe]:
    """The recipes that ship with the package, by file name without its ending."""
    files = {file.stem: file for file in sorted(shipped("sample_configs").glob("*.yaml"))}
    return {
        name: Recipe.from_yaml(files[name].read_text(encoding="utf-8"))
        for name in dict.fromkeys((*LEADING, *files))
    }


def load_recipe(source: str | Path) -> Recipe:
    """A recipe from a YAML file, or a preset by its name. Raises RecipeError."""
    path = local_path(source, RecipeError)
    if not path.is_file():
        preset = presets().get(str(source))
        if preset is not None:
            return preset
        clean = cleaned(str(source))
        if clean != str(source) and (exists(clean) or clean in presets()):
            raise RecipeError(
                f"{printable(path)} is no file; give {clean} without the quotes or blanks"
            )
        raise RecipeError(
            f"{printable(path)} is neither a file nor a preset; presets are {', '.join(presets())}"
        )
    return read_file(path, Recipe.from_yaml)
