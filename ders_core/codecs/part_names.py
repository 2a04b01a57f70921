"""Names of the parts of a codec within another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


def prefixed(prefix: str, specs: Mapping[str, V]) -> dict[str, V]:
    """The parts of a codec within another one."""
    return {f"{prefix}.{name}": value for name, value in specs.items()}


def within(prefix: str, parts: Mapping[str, V]) -> dict[str, V]:
    """The inverse of `prefixed`: the parts under the prefix, without it."""
    head = f"{prefix}."
    return {name.removeprefix(head): part for name, part in parts.items() if name.startswith(head)}
