"""Names that differ in numbers only: what is true of one of them is looked up once for all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NUMBER = re.compile(r"\.([0-9]++)(?=\.)")
"""A number that is a whole part of a name, between two dots."""

_PART = re.compile(r"(?:^|\.)[0-9]+(?:\.|$)")
_END = "\n"


def holds_number(text: str) -> bool:
    """Whether a piece of a name holds a whole part that is a number, or may with what follows."""
    return _PART.search(text) is not None


def numbers_in(kind: str) -> list[tuple[int, int]]:
    """Where the numbers are in a name, as ranges of its characters."""
    return [found.span(1) for found in NUMBER.finditer(kind)]


@dataclass(frozen=True)
class NumberedNames:
    """Many names, each with its kind: the name with 0 in place of every number (see `NUMBER`).

    kinds: one for each name. counts: kind -> how many numbers it holds. numbers: those of all
    names, one after another.
    """

    names: Sequence[str]
    kinds: Sequence[str]
    counts: dict[str, int]
    numbers: Sequence[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> NumberedNames:
        """In one pass over one text: a call for each name costs more than all the rest."""
        listed = list(names)
        text = _END.join(listed)
        pieces = NUMBER.split(text)
        numbers = pieces[1::2]
        kinds = ".0".join(pieces[::2]).split(_END) if listed else []
        if len(kinds) != len(listed):  # a name with a line's end in it
            split = [NUMBER.split(name) for name in listed]
            numbers = [number for pieces in split for number in pieces[1::2]]
            kinds = [".0".join(pieces[::2]) for pieces in split]
        counts = {kind: len(numbers_in(kind)) for kind in dict.fromkeys(kinds)}
        return cls(listed, kinds, counts, numbers)

    def samples(self) -> dict[str, tuple[str, int]]:
        """Kind -> (its first name, how many names are of it)."""
        firsts = dict(zip(reversed(self.kinds), reversed(self.names), strict=True))
        counted = dict.fromkeys(self.kinds, 0)
        for kind in self.kinds:
            counted[kind] += 1
        return {kind: (firsts[kind], count) for kind, count in counted.items()}
