"""YAML texts as people write them, and the line of a value in a text, for errors to point at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ders_core.errors import RecipeError
from ders_core.files.missing import advice
from ders_core.files.untrusted_yaml import MOST_CHARACTERS, YamlFault, compose_yaml, parse_yaml

T = TypeVar("T")

MOST_BYTES = 4 * MOST_CHARACTERS
"""Of a file."""


def load_mapping(text: str, what: str, needs: str) -> dict[str, Any]:
    """The mapping that a text holds.

    what: the kind of text, as a sentence names it. needs: what it must have at least. Raises
    RecipeError if it holds no mapping, with the line where it is known.
    """
    try:
        data = parse_yaml(text)
    except YamlFault as error:
        raise RecipeError(f"the {what} is not valid YAML: {error}", error.line) from error
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
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise RecipeError(f"{path} is longer than {MOST_BYTES} bytes, which are read at most")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist; {advice(path)}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RecipeError(f"{path} cannot be read as text: {error}; save it as UTF-8") from error


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line of the deepest node on `path` (keys and indices) that the text has."""
    node = compose_yaml(text)
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
