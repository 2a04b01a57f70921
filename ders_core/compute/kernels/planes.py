"""Codes as bit planes and as trits, as `codecs.coding.packing` defines them; on machines whose
numbers begin with the lowest byte.

codes: uint8 `[n]`. packed: uint8, of the codes of all values. begin: how many values precede these,
a multiple of eight, or with trits of five.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import loop, part, part_apart
from ders_core.compute.kernels.vectors import constants, everywhere, struct_of

LANES = 32
"""Codes whose bits of a plane are packed and unpacked at once."""

_BYTE, _WORD = ir.IntType(8), ir.IntType(LANES)
_CODES, _FLAGS = ir.VectorType(_BYTE, LANES), ir.VectorType(ir.IntType(1), LANES)

ONES = np.uint64(0x0101010101010101)
GATHER = np.uint64(0x0102040810204080)
"""Brings the lowest bits of eight bytes into the highest byte, the first one lowest."""

SPREAD = np.array(
    [sum((byte >> bit & 1) << 8 * bit for bit in range(8)) for byte in range(256)], np.uint64
)
"""Each bit of a byte in a byte of its own."""

TRITS = np.array(
    [[byte // power % 3 for power in (1, 3, 9, 27, 81)] for byte in range(256)], np.uint8
)


@part_apart
def gathered(word: np.uint64, bit: int) -> np.uint8:
    """That bit of each of eight bytes, the first one lowest."""
    flags = np.uint64(np.uint64(word >> np.uint64(bit)) & ONES)
    return np.uint8(np.uint64(np.uint64(flags * GATHER) >> np.uint64(56)))


def _address(builder: Any, array: Any, place: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(array.data, [place]), kind.as_pointer())


def _moves(target: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any, Any]:
    """(codes, where those of this call begin; a plane's address and its bit in all codes, by the
    plane's number), of the arguments of `_pack` and `_unpack`."""
    codes, packed = (struct_of(target, builder, signature, arguments, each) for each in (0, 2))
    first, stride = arguments[3], arguments[4]

    def plane(bit: Any) -> tuple[Any, Any]:
        place = builder.add(first, builder.mul(bit, stride))
        one = builder.shl(_BYTE(1), builder.trunc(bit, _BYTE))
        return _address(builder, packed, place, _WORD), everywhere(builder, one, LANES)

    return _address(builder, codes, arguments[1], _CODES), plane, constants(_BYTE, LANES, 0)


@intrinsic  # type: ignore[untyped-decorator]
def _pack(
    context: Any, codes: Any, begin: Any, packed: Any, first: Any, stride: Any, bits: Any
) -> Any:
    """LANES codes from one on, into the bytes of each plane from `first` on."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, plane, zeros = _moves(target, builder, signature, arguments)
        values = builder.load(address, align=1)
        with cgutils.for_range(builder, arguments[5]) as loop_of_bits:
            place, one = plane(loop_of_bits.index)
            flags = builder.icmp_unsigned("!=", builder.and_(values, one), zeros)
            builder.store(builder.bitcast(flags, _WORD), place, align=1)
        return target.get_dummy_value()

    whole = types.int64
    return types.none(codes, whole, packed, whole, whole, whole), generate


@intrinsic  # type: ignore[untyped-decorator]
def _unpack(
    context: Any, codes: Any, begin: Any, packed: Any, first: Any, stride: Any, bits: Any
) -> Any:
    """The inverse."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, plane, zeros = _moves(target, builder, signature, arguments)
        values = cgutils.alloca_once_value(builder, zeros)
        builder.store(zeros, values)  # the one before is where a loop around this begins
        with cgutils.for_range(builder, arguments[5]) as loop_of_bits:
            place, one = plane(loop_of_bits.index)
            flags = builder.bitcast(builder.load(place, align=1), _FLAGS)
            found = builder.or_(builder.load(values), builder.select(flags, one, zeros))
            builder.store(found, values)
        builder.store(builder.load(values), address, align=1)
        return target.get_dummy_value()

    whole = types.int64
    return types.none(codes, whole, packed, whole, whole, whole), generate


@loop
def pack(codes: np.ndarray, bits: int, packed: np.ndarray, begin: int, stride: int) -> None:
    """stride: bytes of a plane."""
    whole, first = codes.size // 8, begin // 8
    together = codes.size // LANES
    for number in range(together):
        _pack(codes, LANES * number, packed, first + LANES // 8 * number, stride, bits)
    words = codes[: 8 * whole].view(np.uint64)
    for bit in range(bits):
        plane = packed[bit * stride + first : bit * stride + first + whole]
        for number in range(LANES // 8 * together, whole):
            plane[number] = gathered(words[number], bit)
    if codes.size % 8:
        for bit in range(bits):
            last = 0
            for place in range(8 * whole, codes.size):
                last |= (codes[place] >> bit & 1) << (place - 8 * whole)
            packed[bit * stride + first + whole] = last


@part
def unpack(packed: np.ndarray, bits: int, begin: int, stride: int, codes: np.ndarray) -> None:
    """The inverse."""
    whole, first = codes.size // 8, begin // 8
    together = codes.size // LANES
    for number in range(together):
        _unpack(codes, LANES * number, packed, first + LANES // 8 * number, stride, bits)
    words = codes[: 8 * whole].view(np.uint64)
    for number in range(LANES // 8 * together, whole):
        word = np.uint64(0)
        for bit in range(bits):
            spread = SPREAD[packed[bit * stride + first + number]]
            word |= np.uint64(spread << np.uint64(bit))
        words[number] = word
    for place in range(8 * whole, codes.size):
        code = 0
        for bit in range(bits):
            code |= (packed[bit * stride + first + whole] >> (place - 8 * whole) & 1) << bit
        codes[place] = code


@loop
def pack_trits(codes: np.ndarray, packed: np.ndarray, begin: int) -> None:
    """Codes from 0 to 2."""
    whole, first = codes.size // 5, begin // 5
    for number in range(whole):
        place = 5 * number
        high = codes[place + 2] + 3 * (codes[place + 3] + 3 * codes[place + 4])
        packed[first + number] = codes[place] + 3 * (codes[place + 1] + 3 * high)
    if codes.size % 5:
        last = 0
        for place in range(codes.size - 1, 5 * whole - 1, -1):
            last = 3 * last + codes[place]
        packed[first + whole] = last


@part
def unpack_trits(packed: np.ndarray, begin: int, codes: np.ndarray) -> None:
    """The inverse; of a byte that holds no trits the codes are arbitrary."""
    whole, first = codes.size // 5, begin // 5
    for number in range(whole):
        trits = TRITS[packed[first + number]]
        for digit in range(5):
            codes[5 * number + digit] = trits[digit]
    for place in range(5 * whole, codes.size):
        codes[place] = TRITS[packed[first + whole]][place - 5 * whole]


@loop
def unpack_planes(packed: np.ndarray, bits: int, codes: np.ndarray) -> None:
    """`unpack` of all values."""
    unpack(packed, bits, 0, (codes.size + 7) // 8, codes)
