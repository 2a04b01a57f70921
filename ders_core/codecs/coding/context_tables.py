"""What a stream of differences says of its contexts: docs/format.md, *Streams of `lossless`*."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.differences import Split
from ders_core.codecs.coding.rans import CellsToPop, CellsToPush
from ders_core.later import np

COARSER = 4
"""How many bits more may be noise, where their table would cost more than it saves."""

FARTHEST = 1 << 11
"""Upper parts of differences up to here may have symbols."""

MOST_LOW = 32
"""Bits of noise."""

SPECIAL = -(1 << 62)
"""Upper parts up to four times 2^40 more are none."""

RARE, FAR, NONE = (SPECIAL + (number << 40) for number in range(3))


@dataclass(frozen=True)
class WriteTables:
    """head: uint8, as the stream has it. code_logs: what the usual and the rare cells take at
    least, as of `frequencies.row_logs`. eighths: of bits, that they take with these tables, and no
    less."""

    split: Split
    usual: CellsToPush
    rare: CellsToPush
    head: np.ndarray
    code_logs: np.ndarray
    eighths: int
    takes_bits: bool


@dataclass(frozen=True)
class ReadTables:
    """lows: int64 `[CONTEXTS]`, how many low bits are noise. uppers, rare_uppers: int64 `[cells]`,
    what each adds to its base, without the noise; or RARE, FAR, NONE."""

    lows: np.ndarray
    usual: CellsToPop
    rare: CellsToPop
    uppers: np.ndarray
    rare_uppers: np.ndarray
