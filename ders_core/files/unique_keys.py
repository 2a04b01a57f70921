"""YAML in which a key stands once in a mapping; PyYAML alone takes the last one silently."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError


class UniqueKeyLoader(yaml.SafeLoader):
    """Raises yaml's ComposerError, which has the line, for a key that a mapping has twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in first:
                before = first[key.tag, key.value]
                where = "on the same line" if before == line else f"on line {before}"
                raise ComposerError(
                    "while composing a mapping",
                    node.start_mark,
                    f"the key {key.value!r} is there already, {where}; remove one of the two",
                    key.start_mark,
                )
            first[key.tag, key.value] = line
        return node
