"""YAML that anybody may have written: every YAML text from outside is read here, with limits.

An alias (`*name`) stands for all that its anchor holds, so a few lines can stand for more than any
memory. What a text stands for is counted while it is read, and a text that is too large, too deep
or holds itself is refused before anything is made of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from ders_core.files.untrusted_json import half_character

MOST_CHARACTERS = 1 << 18
"""Of a text; PyYAML reads half of this in a second. A rule takes 70."""

MOST_VALUES = 100_000
"""Keys, values and items, those of an alias counted each time."""

MOST_DEPTH = 32
"""Mappings and lists within each other; a recipe has five."""

MOST_BITS = 128
"""Of an integer."""


class YamlFault(ValueError):
    """A text that is no YAML, or more than is read. Its message is one line; line: 1-based, None
    where it is not known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.line = line


class _BoundedLoader(yaml.SafeLoader):
    """Counts what is composed; every fault is a YAMLError with its place."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._above = 0
        self._composed = 0
        self._extents: dict[int, tuple[int, int]] = {}
        """id of a finished node -> (values that it stands for, levels within it)"""

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        if self._above == MOST_DEPTH:
            raise _fault(f"more than {MOST_DEPTH} levels are within each other", mark)
        self._composed += 1
        if self._composed > MOST_VALUES:
            raise _fault(f"the text holds more than {MOST_VALUES} values", mark)
        self._above += 1
        node: Any = super().compose_node(parent, index)
        self._above -= 1
        if not is_alias:
            self._extents[id(node)] = self._extent(node)
        elif id(node) not in self._extents:
            raise _fault("an alias stands for what it is a part of", mark)
        values, levels = self._extents[id(node)]
        if values > MOST_VALUES:
            raise _fault(f"the text stands for more than {MOST_VALUES} values", mark)
        if self._above + levels > MOST_DEPTH:
            raise _fault(f"more than {MOST_DEPTH} levels are within each other", mark)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        extents = [self._extents[id(child)] for child in children]
        return (
            1 + sum(values for values, _ in extents),
            1 + max((levels for _, levels in extents), default=0),
        )

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        half = half_character(node.value)
        if half is not None:
            raise _fault(f"a text holds half of a character ({half})", node.start_mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            raise _fault(f"{str(node.value)[:60]!a} is no {kind}", node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise _fault(f"a number has {len(node.value)} digits", node.start_mark)
        return value


class _WrittenLoader(_BoundedLoader):
    """Of texts in our own languages. A key stands once in a mapping: PyYAML alone takes the last
    one silently. Numbers are finite. A pattern 2:4 and a date are words, and not 124 and a day."""

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
                raise _fault(
                    f"the key {key.value!r} is there already, {where}; remove one of the two",
                    key.start_mark,
                )
            first[key.tag, key.value] = line
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_object(node, deep=deep)
        if isinstance(value, float) and not math.isfinite(value):
            raise _fault(f"{node.value} is no number that can be meant here", node.start_mark)
        return value


_WORDS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
_WrittenLoader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] not in _WORDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_WrittenLoader.add_implicit_resolver(
    _WORDS[0],
    re.compile(r"[-+]?(?:0b_*[01][01_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The plain values of a recipe, a configuration or a layout. Raises YamlFault."""
    return _read(text, _WrittenLoader, _BoundedLoader.get_single_data)


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of such a text, with their lines; None if it is empty. Raises YamlFault."""
    node: yaml.Node | None = _read(text, _WrittenLoader, _BoundedLoader.get_single_node)
    return node


def parse_foreign_yaml(text: str) -> Any:
    """The plain values of a text that others read too, as they read it: of a key that is there
    twice the last one counts, and a date is a day. Raises YamlFault."""
    return _read(text, _BoundedLoader, _BoundedLoader.get_single_data)


def _read(text: str, loader: type[_BoundedLoader], take: Callable[[_BoundedLoader], Any]) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise YamlFault(f"it has {len(text)} characters, and at most {MOST_CHARACTERS} are read")
    try:
        opened = loader(text)
        try:
            return take(opened)
        finally:
            opened.dispose()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlFault(f"the character {error.character:#06x} cannot be in YAML", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlFault(
            error.problem or "it cannot be read", None if mark is None else mark.line + 1
        ) from error
    except RecursionError as error:
        raise YamlFault("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise YamlFault(f"it cannot be read: {error}") from error


def _fault(problem: str, mark: yaml.Mark) -> ComposerError:
    return ComposerError(None, None, problem, mark)
