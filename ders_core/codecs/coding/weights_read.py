"""Weights out of a base and coded differences: the inverse of `differences.Base.split`."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.differences import PIECE, Base, Split, ordered
from ders_core.codecs.coding.rans import Popper, Tables
from ders_core.codecs.coding.stream import damaged
from ders_core.compute import kernels
from ders_core.compute.pieces import pieces
from ders_core.later import np

SPECIAL = -(1 << 62)
"""Upper parts up to four times 2^40 more are none."""

RARE, FAR, NONE = (SPECIAL + (number << 40) for number in range(3))


@dataclass(frozen=True)
class Coded:
    """far: int64, the upper parts that are outside. noise: uint8 `[bytes]`."""

    split: Split
    far: np.ndarray
    noise: np.ndarray

    def uppers(self, tables: Tables) -> np.ndarray:
        """int64: what each cell adds to its base, without the noise; or RARE, FAR, NONE."""
        symbols, contexts = tables.symbols, tables.contexts
        split = self.split
        spans = split.spans[contexts]
        found: np.ndarray = symbols + split.firsts[contexts] << split.lows[contexts]
        found[symbols == spans] = FAR
        found[symbols > spans] = RARE
        found[spans < 0] = NONE
        return found


def read_onto(base: Base, coded: Coded, popper: Popper, weight: np.ndarray) -> None:
    """Fill weight: int16 or int32 `[n]`, bits of floats. Raises CodecError for numbers that count
    no float, and where as many are outside as are not there, or bits are left."""
    split = coded.split
    if not popper.has_lanes and not (split.usual.alone and split.rare.alone):
        raise damaged()
    if not kernels.takes():
        _read_plainly(base, coded, popper, weight)
        return
    from ders_core.compute.kernels import float_differences

    usual, rare = (
        (tables.slots, tables.info, coded.uppers(tables), tables.bits)
        for tables in (split.usual, split.rare)
    )
    noise = np.zeros(-(-coded.noise.size // 4) + 2, dtype="<u4")
    noise.view(np.uint8)[: coded.noise.size] = coded.noise
    far = np.append(coded.far, 0)
    ends = np.zeros(3, dtype=np.int64)

    def read(states: np.ndarray, words: np.ndarray, begin: int, end: int) -> int:
        places = states, words, begin, end
        arrays = split.lows, far, noise, weight, ends
        at: int = float_differences.read(
            base.bits, *base.numbers, *usual, *rare, *places, PIECE, *arrays
        )
        return at

    popper.lend(read)
    wrong, far_count, noise_bits = ends.tolist()
    if wrong or far_count != coded.far.size or -(-noise_bits // 8) != coded.noise.size:
        raise damaged()


def _read_plainly(base: Base, coded: Coded, popper: Popper, weight: np.ndarray) -> None:
    """The same as a loop does."""
    split = coded.split
    of_usual, of_rare = coded.uppers(split.usual), coded.uppers(split.rare)
    far_count = noise_bits = 0
    for piece in pieces(weight.size, PIECE):
        contexts = base.contexts(piece)
        uppers = of_usual[popper.pop_mixed(contexts, split.usual)]
        places = np.flatnonzero(uppers == RARE)
        uppers[places] = of_rare[popper.pop_mixed(contexts[places], split.rare)]
        lows = split.lows[contexts]
        outside = np.flatnonzero(uppers == FAR)
        far = coded.far[far_count : far_count + len(outside)]
        end = noise_bits + int(lows.sum())
        if len(far) < len(outside) or end > 8 * coded.noise.size or (uppers == NONE).any():
            raise damaged()
        uppers[outside] = far << lows[outside]
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
