"""Vectors of floats for loops whose sums must stay in the processor's registers.

How many lanes a vector has is fixed, and they are added in float64 in a fixed order: the same bits
on every processor, also on those whose registers hold fewer lanes. Nothing is fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

FLOAT, DOUBLE, PLACE = ir.FloatType(), ir.DoubleType(), ir.IntType(64)
_LANE = ir.IntType(32)


def struct_of(target: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    """The array that is an intrinsic's argument `number`: its data and shape."""
    make = cgutils.create_struct_proxy(signature.args[number])
    return make(target, builder, arguments[number])


def load(builder: Any, data: Any, place: Any, lanes: int) -> Any:
    """The float32 values from a place on."""
    return builder.load(_at(builder, data, place, ir.VectorType(FLOAT, lanes)), align=4)


def store(builder: Any, vector: Any, data: Any, place: Any) -> None:
    """Write float32 values from a place on."""
    builder.store(vector, _at(builder, data, place, vector.type), align=4)


def transposed(builder: Any, rows: Sequence[Any]) -> Sequence[Any]:
    """As many vectors as each has lanes, a power of two: the first lanes of all of them, and so
    on."""
    apart = len(rows) // 2
    while apart:
        swapped = list(rows)
        for number in range(len(rows)):
            if number & apart:
                continue
            lower, upper = rows[number], rows[number + apart]
            for place, shift in ((number, 0), (number + apart, apart)):
                lanes = [
                    len(rows) + lane - apart + shift if lane & apart else lane + shift
                    for lane in range(len(rows))
                ]
                mask = ir.Constant(ir.VectorType(_LANE, len(rows)), lanes)
                swapped[place] = builder.shuffle_vector(lower, upper, mask)
        rows, apart = swapped, apart // 2
    return rows


def zeros(number: ir.Type, lanes: int) -> Any:
    """A vector of zeros."""
    return constants(number, lanes, 0.0)


def constants(number: ir.Type, lanes: int, value: float) -> Any:
    """A vector that has a known number in all lanes."""
    return ir.Constant(ir.VectorType(number, lanes), [value] * lanes)


def everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """A vector that has a number in all lanes."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, value, _LANE(0))
    return builder.shuffle_vector(first, first, constants(_LANE, lanes, 0))


def load_bfloat16(builder: Any, data: Any, place: Any, lanes: int) -> Any:
    """The bfloat16 values from a place on, in float32."""
    stored = builder.load(_at(builder, data, place, ir.VectorType(ir.IntType(16), lanes)), align=2)
    bits = builder.zext(stored, ir.VectorType(_LANE, lanes))
    shifted = builder.shl(bits, constants(_LANE, lanes, 16))
    return builder.bitcast(shifted, ir.VectorType(FLOAT, lanes))


def doubled(builder: Any, vector: Any) -> Any:
    """The vector in float64."""
    return builder.fpext(vector, ir.VectorType(DOUBLE, vector.type.count))


def folded(builder: Any, vector: Any, join: Any) -> Any:
    """One number of a vector's: its second half is joined to the first one, again and again."""
    count = vector.type.count
    while count > 1:
        count //= 2
        halves = [
            ir.Constant(ir.VectorType(_LANE, count), list(range(begin, begin + count)))
            for begin in (0, count)
        ]
        vector = join(*(builder.shuffle_vector(vector, vector, half) for half in halves))
    return builder.extract_element(vector, _LANE(0))


Join = Callable[[Any, Any], Any]
"""Makes one of two vectors, or of two numbers."""


def joined(count: int, terms: Callable[[int], Sequence[Any]], join: Join) -> Sequence[Any]:
    """All vectors joined lane by lane, in the order of `compute.sums.halved_sum`: a vector for each
    of several sums. count: how many there are, a power of two. terms: the vectors, of each sum,
    with a number of others before them."""

    def of_every(first: int, apart: int) -> Sequence[Any]:
        """Of the first vector, and those that are multiples of `apart` after it."""
        if apart == count:
            return terms(first)
        pairs = zip(of_every(first, 2 * apart), of_every(first + apart, 2 * apart), strict=True)
        return [join(*pair) for pair in pairs]

    return of_every(0, 1)


def halved(
    builder: Any, count: int, terms: Callable[[int], Sequence[Any]], join: Join
) -> list[Any]:
    """All terms joined, in the order of `compute.sums.halved_sum`: a number for each of several
    sums. count, terms: as of `joined`, of vectors of 8."""
    totals = []
    for vector in joined(count, terms, join):
        total = builder.extract_element(vector, _LANE(0))
        for lane in range(1, vector.type.count):
            total = join(total, builder.extract_element(vector, _LANE(lane)))
        totals.append(total)
    return totals


def _at(builder: Any, data: Any, place: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [place]), kind.as_pointer())
