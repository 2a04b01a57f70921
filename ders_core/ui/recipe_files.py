"""Recipes kept in the workspace, one YAML file each, and those that somebody typed or sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import streamlit as st

from ders_core.errors import DersError, RecipeError
from ders_core.files.place_errors import writing
from ders_core.files.stamp import Stamp, stamp
from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.files.writer import write_text
from ders_core.recipe import Recipe, presets
from ders_core.ui.recipe_text import recipe_of, text_of
from ders_core.ui.session import workspace

_NAME = re.compile(r"[\w][\w .+-]*")
"""What can be the name of a file, too."""


@dataclass(frozen=True)
class UnusableFile:
    """A file in the folder of saved recipes, and why it is no recipe that can be used."""

    file: Path
    why: str


@dataclass(frozen=True)
class SavedRecipes:
    """recipes: by name. unusable: files that are no such recipes."""

    recipes: Mapping[str, Recipe]
    unusable: Sequence[UnusableFile]


def read_recipe(text: str, most: int = MOST_CHARACTERS) -> Recipe:
    """A recipe that somebody typed or sent.

    most: characters that `to_yaml` may make of it, which are more than those of a text in short
    forms; what is kept must be readable again. Raises RecipeError, with the line where it is known,
    and JobError if the recipe names files outside the allowed folders.
    """
    recipe = recipe_of(text, most)
    check_places(recipe)
    return recipe


def check_places(recipe: Recipe) -> None:
    """Raise JobError if the recipe names files outside the allowed folders."""
    for file in recipe.files:
        workspace().check_allowed(file)


@dataclass(frozen=True)
class _Tried:
    """A file that was read. stamp: as it was then; None where a later change need not give another
    one, and then the content decides. content: its hash. result: the recipe, or why it is none."""

    stamp: Stamp | None
    content: str
    result: Recipe | str


@st.cache_resource(show_spinner=False)
def _tried() -> dict[Path, _Tried]:
    """Files that were read. Making a recipe of a long text takes seconds, and pages ask for all of
    them whenever they are drawn."""
    return {}


def _try(file: Path) -> Recipe | str:
    """The recipe of a file, or why it is none. Raises OSError if there is no such file."""
    now, known = stamp(file), _tried().get(file)
    if known is not None and known.stamp == now:
        return known.result
    kept = now if now.is_settled else None  # asked before the file is read
    result: Recipe | str
    try:
        data = file.read_bytes()
    except OSError as error:  # may be another one the next time
        return str(error)
    content = sha256(data).hexdigest()
    if known is not None and known.content == content:
        result = known.result
    else:
        try:
            result = recipe_of(data.decode())
        except (UnicodeDecodeError, DersError) as error:
            result = str(error)
    _tried()[file] = _Tried(kept, content, result)
    return result


def named_recipe(name: str) -> Recipe | None:
    """The saved recipe of a name, or else the preset; None if there is none. Raises RecipeError if
    a file of that name cannot be used."""
    if not _NAME.fullmatch(name):
        return None
    file = workspace().recipes / f"{name}.yaml"
    try:
        found = _try(file)
    except OSError:
        return presets().get(name)
    if isinstance(found, Recipe):
        return found
    raise RecipeError(f"the saved recipe {file} cannot be used: {found}")


def saved_recipes() -> SavedRecipes:
    """All that are in the workspace now."""
    files = sorted(workspace().recipes.glob("*.yaml"))
    for gone in set(_tried().copy()) - set(files):
        _tried().pop(gone, None)
    recipes, unusable = dict[str, Recipe](), list[UnusableFile]()
    for file in files:
        try:
            found = _try(file)
        except OSError as error:
            found = str(error)
        if isinstance(found, Recipe):
            recipes[found.name] = found
        else:
            unusable.append(UnusableFile(file, found))
    return SavedRecipes(recipes, unusable)


def save_recipe(recipe: Recipe) -> None:
    """Write or replace. Raises RecipeError if the name cannot be a file's, or the recipe is too
    long to be read again; OutputError if the file cannot be written."""
    if not _NAME.fullmatch(recipe.name):
        raise RecipeError(
            f"{recipe.name!r} cannot be a file's name; use letters, digits, spaces, '.', '-', '+'"
        )
    text, directory = text_of(recipe), workspace().recipes
    file = directory / f"{recipe.name}.yaml"
    with writing(file):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
