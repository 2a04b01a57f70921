"""Texts with names, which are measured apart: `code=a.txt`, `prose=b.txt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ders_core.errors import EvaluationError
from ders_core.files.missing import exists, printable
from ders_core.files.texts import Texts

NamedTexts = Texts | Mapping[str, Texts]
"""A path or several that are read as one text; or texts by their names, each a path or several."""

LONGEST_NAME = 60


def by_name(texts: NamedTexts) -> dict[str, Texts]:
    """The texts by name; "" for texts without names. Raises EvaluationError if there is none, or
    for a name that cannot be shown in a line."""
    if not isinstance(texts, Mapping):
        return {"": texts}
    if not texts:
        raise EvaluationError("no text is named; give a file or a directory")
    for name in texts:
        _check_name(name)
    return dict(texts)


def parse_named(places: Sequence[str]) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """Paths, each perhaps with NAME= before it; those with one name are read as one text.

    A path that exists as it is written has no name, though it may have an = in it, and a name has
    no slash. Raises EvaluationError if some have a name and others have none.
    """
    split = [_split(place) for place in places]
    if not any(name for name, _ in split):
        return tuple(places)
    named: dict[str, tuple[str, ...]] = {}
    for name, path in split:
        if not name:
            raise EvaluationError(
                f"{printable(path)} has no name, and another text has one; give NAME=PATH for all "
                "texts, or for none"
            )
        _check_name(name)
        named[name] = (*named.get(name, ()), path)
    return named


def _split(place: str) -> tuple[str, str]:
    name, sign, path = place.partition("=")
    if not sign or exists(place) or "/" in name:
        return "", place
    return name.strip(), path.strip()


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise EvaluationError(
            f"{printable(name)!r} cannot name a text; give a name of 1 to {LONGEST_NAME} characters"
        )
