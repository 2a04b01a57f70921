"""The names of the texts that a calibration was measured on, as a short field of its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ders_core.files.untrusted_json import JsonFault, parse_json

MOST = 8
"""Names that are kept."""

LONGEST = 80
"""Characters of a name that are kept."""


def text_names_field(names: Sequence[str]) -> str:
    """A JSON list of the first names."""
    return json.dumps(_shortened(names), ensure_ascii=False)


def parse_text_names(field: str | None) -> tuple[str, ...]:
    """The names in a field of a file that may be anyone's; () if it is not such a list.

    They are to be shown, nothing more: so what is wrong with them is no reason to refuse the file.
    """
    try:
        names = parse_json(field or "[]")
    except JsonFault:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(_shortened(names))


def _shortened(names: Sequence[str]) -> list[str]:
    """The first names, with what cannot be printed replaced, and cut."""
    shown = (name.replace("\\", "/").rpartition("/")[2][:LONGEST] for name in names[:MOST])
    return [
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)
        for name in shown
    ]
