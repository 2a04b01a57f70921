"""Patterns for names of tensors, asked about every tensor of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate

_ESCAPED = re.compile(r"\[([*?[])\]")
"""A wildcard that stands for itself."""


class NamePatterns:
    """Patterns as `fnmatch` has them, distinguishing cases. Those without a wildcard, such as
    `glob.escape` makes of a name, are looked up: a thousand of them cost what one does."""

    def __init__(self, patterns: Sequence[str]) -> None:
        plain = [pattern for pattern in patterns if _is_plain(pattern)]
        self._names = frozenset(_ESCAPED.sub(r"\1", pattern) for pattern in plain)
        others = [translate(pattern) for pattern in patterns if not _is_plain(pattern)]
        self._wild = re.compile("|".join(others)) if others else None

    def fit(self, name: str) -> bool:
        """Whether a name is one that the patterns stand for."""
        if name in self._names:
            return True
        return self._wild is not None and self._wild.match(name) is not None


def _is_plain(pattern: str) -> bool:
    """Whether a pattern stands for one name: all its wildcards are escaped."""
    return not re.search(r"[*?[]", _ESCAPED.sub("", pattern))
