"""How one matrix's variable-length parts on disk begin, and how long they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ders_core.errors import CodecError
from ders_core.later import np

FIRST_BYTES = 1 << 14
GROWTH = 8

Told = TypeVar("Told")


@dataclass(frozen=True)
class PartBegins:
    """lengths: of each part, in bytes. read: the first so many of a part, uint8; numpy's, because
    headers and what streams begin with are told without torch."""

    lengths: Mapping[str, int]
    read: Callable[[str, int], np.ndarray]

    def within(self, prefix: str) -> PartBegins:
        """Of one stage of a chain (see `codec.within`)."""
        head = f"{prefix}."
        lengths = {
            name.removeprefix(head): length
            for name, length in self.lengths.items()
            if name.startswith(head)
        }
        return PartBegins(lengths, lambda part, count: self.read(head + part, count))

    def told_by(self, part: str, tell: Callable[[np.ndarray], Told]) -> Told:
        """What the first bytes of a part tell, as few as are enough. Raises the CodecError of
        `tell` if all of them are not."""
        length, taken = self.lengths[part], FIRST_BYTES
        while taken < length:
            try:
                return tell(self.read(part, taken))
            except CodecError:
                taken *= GROWTH
        return tell(self.read(part, length))
