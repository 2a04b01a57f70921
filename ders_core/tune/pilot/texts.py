"""A text in two parts: one to calibrate on, one to measure on, which the first never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ders_core.files.named_texts import NamedTexts, by_name
from ders_core.files.place_errors import writing
from ders_core.files.texts import Texts, as_paths
from ders_core.files.writer import write_text

SHARE = 0.6
"""Of each text that is calibrated on, from its beginning."""

PIECE = 4000
"""Characters that are taken of each text in turn, about: a calibration reads no more than so many
tokens, and is to meet all texts."""


@dataclass(frozen=True)
class Parts:
    """calibration, heldout: the two parts. told: what they are, in a sentence."""

    calibration: Texts
    heldout: NamedTexts
    told: str


def parts_of(text: NamedTexts, heldout: NamedTexts) -> Parts:
    """Of texts that are apart already. heldout: what is measured on. Raises EvaluationError for a
    name that cannot be shown."""
    paths = [path for some in by_name(text).values() for path in as_paths(some)]
    return Parts(paths, heldout, "calibrated on one text, and measured on another that was given")


def split_text(text: NamedTexts, read: Callable[[Texts], str], directory: Path) -> Parts:
    """Cut each text at the end of a line after SHARE of it, and write both parts into a directory.

    read: gives all documents of a text as one. Equal texts give equal files. Raises OutputError,
    and what `read` raises.
    """
    named = by_name(text)
    halves = {name: _cut(read(paths)) for name, paths in named.items()}
    calibration = directory / "calibration.txt"
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(calibration, "".join(_in_turn([first for first, _ in halves.values()])))
        heldout: dict[str, Path] = {}
        for number, (name, (_, second)) in enumerate(halves.items(), 1):
            heldout[name] = directory / f"heldout-{number}.txt"
            write_text(heldout[name], second)
    whose = "each text" if len(named) > 1 else "the text"
    told = (
        f"calibrated on the first {100 * SHARE:g} % of {whose}, and measured on the rest, which "
        "the calibration never saw"
    )
    return Parts(calibration, heldout.get("", heldout), told)


def _cut(text: str) -> tuple[str, str]:
    place = int(SHARE * len(text))
    for end in ("\n", " "):
        found = text.find(end, place)
        if found >= 0:
            return text[: found + 1], text[found + 1 :]
    return text[:place], text[place:]


def _in_turn(texts: list[str]) -> Iterator[str]:
    """Pieces of all texts, one of each in turn, until all are used up."""
    for pieces in zip_longest(*map(_pieces, texts), fillvalue=""):
        yield from pieces


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end
