"""Weights out of a base and coded differences: the inverse of `differences.Base.split`."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.context_tables import FAR, NONE, RARE, ReadTables
from ders_core.codecs.coding.differences import PIECE, Base, ordered
from ders_core.codecs.coding.rans import Popper
from ders_core.codecs.coding.stream import damaged
from ders_core.compute import kernels
from ders_core.compute.pieces import pieces
from ders_core.later import np

MOST_NARROW = 16
"""Low bits with which differences of 16-bit floats have room in 32 bits, those that are none too.
"""

LARGEST = 1 << 40
"""A difference so large counts no float, and is no larger with low bits."""


@dataclass(frozen=True)
class Coded:
    """far: int64, the upper parts that are outside. noise: uint8 `[bytes]`, the low bits."""

    tables: ReadTables
    far: np.ndarray
    noise: np.ndarray


def read_onto(base: Base, coded: Coded, popper: Popper, weight: np.ndarray) -> None:
    """Fill weight: int16 or int32 `[n]`, bits of floats. Raises CodecError for numbers that count
    no float, and where as many are outside as are not there, or bits are left."""
    tables = coded.tables
    if not popper.has_lanes and not (tables.usual.alone and tables.rare.alone):
        raise damaged()
    if not kernels.takes():
        _read_plainly(base, coded, popper, weight)
        return
    from ders_core.compute.kernels import float_differences

    usual = tables.usual.slots, tables.usual.info, tables.uppers, tables.usual.bits
    rare = tables.rare.slots, tables.rare.info, tables.rare_uppers, tables.rare.bits
    noise = np.empty(coded.noise.size + float_differences.SPARE, np.uint8)
    noise[: coded.noise.size] = coded.noise
    is_narrow = weight.itemsize == 2 and tables.lows.max() <= MOST_NARROW
    room = np.empty(float_differences.BLOCK, np.int32 if is_narrow else np.int64)
    far = np.append(coded.far, 0)
    ends = np.zeros(3, dtype=np.int64)

    def read(states: np.ndarray, words: np.ndarray, begin: int, end: int) -> int:
        places = states, words, begin, end
        arrays = tables.lows, far, noise, weight, ends
        at: int = float_differences.read(
            base.bits, base.numbers, *usual, *rare, *places, PIECE, room, *arrays
        )
        return at

    popper.lend(read)
    wrong, far_count, noise_bits = ends.tolist()
    if wrong or far_count != coded.far.size or -(-noise_bits // 8) != coded.noise.size:
        raise damaged()


def _read_plainly(base: Base, coded: Coded, popper: Popper, weight: np.ndarray) -> None:
    """The same as a loop does."""
    tables = coded.tables
    far_count = noise_bits = 0
    for piece in pieces(weight.size, PIECE):
        contexts = base.contexts(piece)
        uppers = tables.uppers[popper.pop_mixed(contexts, tables.usual)]
        places = np.flatnonzero(uppers == RARE)
        rare = popper.pop_mixed(contexts[places], tables.rare)
        uppers[places] = tables.rare_uppers[rare]
        lows = tables.lows[contexts]
        outside = np.flatnonzero(uppers == FAR)
        far = coded.far[far_count : far_count + len(outside)]
        end = noise_bits + int(lows.sum())
        if len(far) < len(outside) or end > 8 * coded.noise.size or (uppers == NONE).any():
            raise damaged()
        most = LARGEST >> lows[outside]
        uppers[outside] = np.clip(far, -most, most) << lows[outside]
        far_count += len(outside)
        bits = np.unpackbits(coded.noise[noise_bits // 8 : -(-end // 8)], bitorder="little")
        bits = bits[noise_bits % 8 :][: end - noise_bits]
        owners, begins = np.repeat(np.arange(len(lows)), lows), np.cumsum(lows) - lows
        powers = 2.0 ** (np.arange(len(bits)) - begins[owners])
        noise = np.bincount(owners, bits * powers, minlength=len(lows)).astype(np.int64)
        noise_bits = end
        numbers = ordered(base.bits[piece], base.half) + uppers + noise
        if numbers.min() < -base.half or numbers.max() >= base.half:
            raise damaged()
        weight[piece] = np.where(numbers < 0, -base.half - 1 - numbers, numbers)
    if far_count != coded.far.size or -(-noise_bits // 8) != coded.noise.size:
        raise damaged()
