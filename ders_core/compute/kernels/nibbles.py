"""Sums of four inputs for each of the sixteen ways to choose from them, and many of them looked up
at once: half a byte of a bit plane says which of four inputs count.

tables: uint8 `[n, in / 4, 64]`. A table has the sixteen sums as bytes: the lowest ones of all,
then the next ones, and so on, since processors look up bytes. On machines whose numbers begin with
the lowest byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.vectors import FLOAT, PLACE, everywhere, struct_of, zeros

INPUTS = 4
"""Of a table."""

SUMS, TABLE = 16, 64
"""Sums of a table, and its bytes."""

ROWS = 32
"""Rows whose sums are looked up at once."""

PLACES = np.array(
    [4 * part + 16 * half + row for part in range(4) for half in (0, 1) for row in range(4)]
)
"""Of the byte of each row among those that are looked up, so that sums are in the rows' order."""

_BYTE, _LANE, _HALF = ir.IntType(8), ir.IntType(32), 16
BYTES = ir.VectorType(_BYTE, ROWS)


def _mask(places: Any) -> Any:
    places = [*places]
    return ir.Constant(ir.VectorType(_LANE, len(places)), places)


def _interleaved(builder: Any, left: Any, right: Any, begin: int) -> Any:
    """Numbers of both in turn, of the first or second half of each 16 bytes: processors have an
    instruction for it. begin: 0 or half of a 16 bytes' numbers."""
    count = left.type.count
    numbers = count // 2
    places = [
        place + side
        for lane in (0, numbers)
        for place in range(lane + begin, lane + begin + numbers // 2)
        for side in (0, count)
    ]
    return builder.shuffle_vector(left, right, _mask(places))


def both_interleaved(builder: Any, left: Any, right: Any) -> tuple[Any, Any]:
    """Numbers of both in turn, of the first halves of each 16 bytes and of the second ones."""
    half = left.type.count // 4
    return _interleaved(builder, left, right, 0), _interleaved(builder, left, right, half)


def _chosen(target: Any, builder: Any, table: Any, places: Any) -> Any:
    """Bytes of a table of sixteen, `[16]`, at places below 16, `[ROWS]`."""
    _, _, features = target.codegen().magic_tuple()
    if "+avx2" in features.split(","):
        whole = builder.shuffle_vector(table, table, _mask([*range(SUMS)] * 2))
        kind = ir.FunctionType(BYTES, (BYTES, BYTES))
        look = builder.module.declare_intrinsic("llvm.x86.avx2.pshuf.b", (), kind)
        return builder.call(look, (whole, places))
    found = ir.Constant(BYTES, ir.Undefined)
    for row in range(ROWS):
        place = builder.zext(builder.extract_element(places, _LANE(row)), _LANE)
        found = builder.insert_element(found, builder.extract_element(table, place), _LANE(row))
    return found


def looked_up(target: Any, builder: Any, table: Any, places: Any) -> list[Any]:
    """The sums of a table at places below 16, `[ROWS]` bytes: four vectors of eight float32, whose
    number n is of the byte `PLACES[n]`. table: the address of its bytes."""
    sixteen = ir.VectorType(_BYTE, SUMS)
    planes = []
    for byte in range(TABLE // SUMS):
        address = builder.gep(table, [PLACE(SUMS * byte)])
        stored = builder.load(builder.bitcast(address, sixteen.as_pointer()), align=1)
        planes.append(_chosen(target, builder, stored, places))
    words = ir.VectorType(ir.IntType(16), _HALF)
    lower = both_interleaved(builder, planes[0], planes[1])
    upper = both_interleaved(builder, planes[2], planes[3])
    found: list[Any] = []
    for low, high in zip(lower, upper, strict=True):
        pair = builder.bitcast(low, words), builder.bitcast(high, words)
        found += both_interleaved(builder, *pair)
    return [builder.bitcast(each, ir.VectorType(FLOAT, 8)) for each in found]


@intrinsic  # type: ignore[untyped-decorator]
def _write_table(context: Any, x: Any, begin: Any, tables: Any, number: Any) -> Any:
    """The table of the inputs from a place on."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        inputs, written = (struct_of(target, builder, signature, arguments, n) for n in (0, 2))
        none = zeros(FLOAT, SUMS)
        sums = none
        for each in range(INPUTS):
            address = builder.gep(inputs.data, [builder.add(arguments[1], PLACE(each))])
            value = everywhere(builder, builder.load(address), SUMS)
            flags = [number >> each & 1 for number in range(SUMS)]
            counts = ir.Constant(ir.VectorType(ir.IntType(1), SUMS), flags)
            sums = builder.fadd(sums, builder.select(counts, value, none))
        whole = ir.VectorType(_BYTE, TABLE)
        stored = builder.bitcast(sums, whole)
        places = (4 * place + byte for byte in range(4) for place in range(SUMS))
        by_byte = builder.shuffle_vector(stored, stored, _mask(places))
        address = builder.gep(written.data, [builder.mul(arguments[3], PLACE(TABLE))])
        builder.store(by_byte, builder.bitcast(address, whole.as_pointer()), align=1)
        return target.get_dummy_value()

    return types.none(x, types.int64, tables, types.int64), generate


@loop
def write_tables(x: np.ndarray, tables: np.ndarray) -> None:
    """x: float32 `[n, in]`, contiguous."""
    inputs, written = x.reshape(-1), tables.reshape(-1)
    for number in range(inputs.size // INPUTS):
        _write_table(inputs, INPUTS * number, written, number)
