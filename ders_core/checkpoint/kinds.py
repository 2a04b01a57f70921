"""What a tensor outside the experts can be, and what its name says of that where no layout does."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from ders_core.files.package_data import plain_yaml

Kind = Literal[
    "attention", "ffn", "shared", "embedding", "head", "router", "norm", "vector", "other"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a tensor outside the experts can be. vector: of one dimension, and no norm."""

SMALL: tuple[Kind, ...] = ("router", "norm", "vector")
"""Kinds that take few bytes, and that a model is sensitive to."""


@cache
def _words() -> dict[Kind, list[str]]:
    words: dict[Kind, list[str]] = plain_yaml(Path(__file__).with_name("kinds.yaml"))
    return words


@cache
def _kind_of_part(part: str) -> Kind | None:
    """What a part of a name between dots says."""
    pairs = ((kind, word) for kind, words in _words().items() for word in words)
    return next((kind for kind, word in pairs if fnmatchcase(part, word)), None)


def kind_by_words(name: str) -> Kind:
    """What a tensor's name says: the innermost part that says something decides, so an attention's
    norm is a norm."""
    parts = (_kind_of_part(part) for part in reversed(name.split(".")))
    return next((kind for kind in parts if kind is not None), "other")
