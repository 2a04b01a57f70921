"""YAML texts as people write them, and the line of a value in a text, for errors to point at."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ders_core.errors import RecipeError
from ders_core.files.missing import advice
from ders_core.files.unique_keys import UniqueKeyLoader

T = TypeVar("T")


class _Loader(UniqueKeyLoader):
    """Without YAML 1.1's numbers of base 60: a pattern 2:4 is a word, and not 124."""


_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0b_*[01][01_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)


def load(text: str) -> Any:
    """The text's plain values. Raises yaml.YAMLError, or ValueError for an impossible date."""
    return yaml.load(text, Loader=_Loader)


def load_mapping(text: str, what: str, needs: str) -> dict[str, Any]:
    """The mapping that a text holds.

    what: the kind of text, as a sentence names it. needs: what it must have at least. Raises
    RecipeError if it holds no mapping, with the line where it is known.
    """
    try:
        data = load(text)
    except RecursionError as error:
        raise RecipeError(f"the {what} is nested too deeply to be one") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise RecipeError(
            f"the {what} is not valid YAML: {problem}", mark.line + 1 if mark else None
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(f"the {what} is empty or not a mapping; give {needs}", 1)
    return data


def read_file(path: Path, parse: Callable[[str], T]) -> T:
    """What `parse` makes of a file's text. Raises RecipeError that names the file."""
    text = _text_of(path)
    try:
        return parse(text)
    except RecipeError as error:
        named = RecipeError(f"{path.name}: {error}")
        named.line = error.line
        raise named from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist; {advice(path)}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RecipeError(f"{path} cannot be read as text: {error}; save it as UTF-8") from error


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line of the deepest node on `path` (keys and indices) that the text has."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entry = next(
                ((key, value) for key, value in node.value if key.value == str(part)), None
            )
            if entry is None:
                break
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
