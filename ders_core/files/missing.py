"""Places where nothing is: what was probably meant."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name, as the hub writes it."""

QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "<": ">"}


def cleaned(place: str) -> str:
    """A place without the blanks and quotes that a paste brings along.

    As it is if something is there: a name may have blanks at its ends.
    """
    if exists(place):
        return place
    clean = place.strip()
    while len(clean) > 1 and QUOTES.get(clean[0]) == clean[-1]:
        clean = clean[1:-1].strip()
    return clean


def advice(path: Path) -> str:
    """What to do about a path at which nothing is, for the end of a sentence."""
    text = str(path)
    for candidate in (text, path.name):  # the second of a path that was resolved against a folder
        clean = cleaned(candidate)
        if clean not in ("", candidate) and exists(clean):
            return f"{clean} does: give it without the quotes or blanks around it"
    name = _hub_name(path)
    if name is not None:
        return f"check the path, or give hf://{name} if you mean the repository on the hub"
    return "check the path"


def printable(path: Path) -> str:
    """The path in one line: as it is, or with escapes for what cannot be printed."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def exists(place: str) -> bool:
    """Whether there is a file or directory; False for what cannot be a path."""
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _hub_name(path: Path) -> str | None:
    """owner/name, if a path in the current directory may be meant so."""
    if path.is_absolute():
        here = Path.cwd()
        if not path.is_relative_to(here):
            return None
        path = path.relative_to(here)
    name = path.as_posix()
    owner_is_here = len(path.parts) == 2 and exists(path.parts[0])
    return name if HUB_NAME.fullmatch(name) and not owner_is_here else None
