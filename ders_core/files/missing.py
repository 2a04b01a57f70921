"""Places where nothing is: what was probably meant."""

from __future__ import annotations

import re
from pathlib import Path

from ders_core.errors import CheckpointError, DersError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name, as the hub writes it."""

LONGEST = 300
"""Characters of a path that messages show."""

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


def printable(path: str | Path) -> str:
    """The path in one line: as it is, with escapes for what cannot be printed, and without the
    middle of one that is longer than a screen."""
    text = str(path)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    return text if text.isprintable() else ascii(text)


def local_path(place: str | Path, kind: type[DersError] = CheckpointError) -> Path:
    """The path with ~ expanded, where something is or could be.

    Raises `kind` for what cannot be one, or cannot be looked at: a name that is too long, a loop of
    links, a folder that may not be entered, the home of nobody.
    """
    path = Path(place)
    try:
        path = path.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{printable(path)} cannot be read: {reason}; check the path") from error
    return path


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
