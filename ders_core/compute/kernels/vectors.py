"""Vectors of floats for loops whose sums must stay in the processor's registers.

How many lanes a vector has is fixed, and they are added in float64 in a fixed order: the same bits
on every processor, also on those whose registers hold fewer lanes. Nothing is fused.
"""

from __future__ import annotations

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


def zeros(number: ir.Type, lanes: int) -> Any:
    """A vector of zeros."""
    return ir.Constant(ir.VectorType(number, lanes), [0.0] * lanes)


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


def _at(builder: Any, data: Any, place: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [place]), kind.as_pointer())
