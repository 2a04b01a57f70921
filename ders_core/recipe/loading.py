"""The recipes that ship with the package, and those in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import takewhile
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


class Presets(Mapping[str, Recipe]):
    """Recipes in files, by file name without its ending, each read when it is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        by_name = {file.stem: file for file in files}
        self._files = {name: by_name[name] for name in dict.fromkeys((*LEADING, *by_name))}
        self._read: dict[str, Recipe] = {}

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._read:
            self._read[name] = Recipe.from_yaml(self._files[name].read_text(encoding="utf-8"))
        return self._read[name]

    def about(self, name: str) -> str:
        """What a preset is for: the comment that its file begins with, as one line."""
        lines = self._files[name].read_text(encoding="utf-8").splitlines()
        comment = takewhile(lambda line: line.startswith("#"), lines)
        return " ".join(line.removeprefix("#").strip() for line in comment)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@cache
def presets() -> Presets:
    """The recipes that ship with the package."""
    return Presets(sorted(shipped("sample_configs").glob("*.yaml")))


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
