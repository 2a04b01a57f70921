"""YAML texts as people write them; and where in one a value stands, so that an error can point at
its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Without YAML 1.1's numbers of base 60: a pattern 2:4 is a word, and not 124."""


_Loader.yaml_implicit_resolvers = {
    first: [own for own in resolvers if own[0] != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0b_*[01][01_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)


def load(text: str) -> Any:
    """Plain values. Raises yaml.YAMLError, or ValueError for a date that is none."""
    return yaml.load(text, Loader=_Loader)


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line of the deepest node on `path` (keys and indices) that the text has."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(
                ((key, value) for key, value in node.value if key.value == str(part)), None
            )
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
