"""The formats that `export` writes. This module imports nothing heavy: pages and jobs use it."""

from __future__ import annotations

from typing import Literal, cast, get_args

Format = Literal["packed", "original", "patch"]
"""packed: the packed checkpoint itself. original: the layout that came in. patch: the deltas."""

FORMATS: tuple[Format, ...] = get_args(Format)

FormatOrAlias = Format | Literal["dense"]
"""`dense` is what `original` was called before; scripts and stored jobs may still say it."""

_ALIASES: dict[str, Format] = {"dense": "original"}


def canonical(name: FormatOrAlias | str) -> Format:
    """The format of this name, old or new. An unknown name comes back as it is."""
    return _ALIASES.get(name, cast(Format, name))
