"""The codes of all entries of a matrix: a byte each, unless one is far from zero."""

from __future__ import annotations

from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.sections import FEW_OTHERS
from ders_core.codecs.fitting.counting import arrange_and_count
from ders_core.codecs.fitting.rounding import FARTHEST
from ders_core.compute.buffers import fresh_array
from ders_core.compute.pieces import pieces
from ders_core.later import np

NEAR = 127
"""Codes at most so far from zero's take a byte."""

CHUNK = 1 << 20
"""Codes at a time."""


SLABS_BYTES = 9 << 20
"""Of slabs that are rounded, and of tables."""

RARE = 2 * 8 / 11
"""Bytes of memory for a byte of the stream: a rare level takes at least 11 bits there."""


def encoding_bytes(count: int, limit: int) -> int:
    """What coding so many entries in at most `limit` bytes holds at most, and decoding them again.

    Codes take three bytes while they become wider, and then two. Coded are at most FEW_OTHERS of
    them, with as many of a byte for gaps, and again in smaller pieces, or fewer rare ones; and the
    words of the stream. Decoded, symbols take two, with rare ones, the stream, and its words.
    """
    others = 4 * FEW_OTHERS * count
    coded = 2 * count + others + limit
    decoded = 2 * count + min(others, RARE * limit) + 2 * limit
    return int(max(3 * count, coded, decoded)) + SLABS_BYTES


class StoredCodes:
    """kept: uint8 or uint16 `[n]`, in the order of an arrangement, less by `least`. A slab may not
    be put while another one is."""

    def __init__(self, count: int) -> None:
        self.kept, self.least = fresh_array(count, np.uint8), FARTHEST - NEAR
        self._has_some = False

    def put(
        self, codes: np.ndarray, part: Arrangement, begins: np.ndarray, counts: np.ndarray
    ) -> None:
        """Codes uint16 of some rows; the arguments as of `arrange_and_count`."""
        if self.least and codes.size and not self._takes(codes):
            self._widen()
        arrange_and_count(codes, part, begins, self.kept, self.least, counts)
        self._has_some = True

    def _takes(self, codes: np.ndarray) -> bool:
        return int(codes.min()) >= self.least and int(codes.max()) <= FARTHEST + NEAR

    def _widen(self) -> None:
        count, narrow, least = self.kept.size, self.kept, self.least
        self.drop()
        if not self._has_some:
            del narrow  # its memory goes before there is more
            self.kept = fresh_array(count, np.uint16)
            return
        self.kept = fresh_array(count, np.uint16)
        for piece in pieces(count, CHUNK):  # those not put yet are put later
            np.add(narrow[piece], np.uint16(least), out=self.kept[piece], dtype=np.uint16)

    def drop(self) -> None:
        """Hold nothing any more."""
        self.kept, self.least = np.empty(0, np.uint16), 0

    def piece(self, begin: int, end: int) -> np.ndarray:
        """Some codes, uint16."""
        wide: np.ndarray = np.add(self.kept[begin:end], np.uint16(self.least), dtype=np.uint16)
        return wide

    def within(self) -> slice:
        """From the first code that occurs to the last."""
        if not self.kept.size:
            return slice(0, 0)
        return slice(self.least + int(self.kept.min()), self.least + int(self.kept.max()) + 1)
