"""Values against the levels of a table, in the processor's registers.

values, levels: float32 `[n]`, n one of `even_levels.SIZES`. Sums are in the order of
`compute.sums.halved_sum`, so that loops over memory give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.even_levels import LANES, Block, sums_of
from ders_core.compute.kernels.vectors import PLACE, everywhere, load, store, struct_of

TOGETHER = 4
"""Vectors whose values are compared with a border while it is at hand; they divide all SIZES."""


@intrinsic  # type: ignore[untyped-decorator]
def snap_to_few(
    context: Any, values: Any, inverse: Any, table: Any, borders: Any, levels: Any
) -> Any:
    """levels: get the level nearest to each value times the inverse of a step. table, borders: as
    of `levels`."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_values, of_table, of_borders, of_levels = (
            struct_of(target, builder, signature, arguments, number) for number in (0, 2, 3, 4)
        )
        size = builder.extract_value(of_values.shape, 0)
        last = builder.sub(builder.extract_value(of_table.shape, 0), PLACE(1))
        factor = everywhere(builder, arguments[1], LANES)
        lowest = everywhere(builder, builder.load(of_table.data), LANES)
        found = [cgutils.alloca_once_value(builder, lowest) for _ in range(TOGETHER)]
        many = PLACE(LANES * TOGETHER)
        with cgutils.for_range(builder, builder.udiv(size, many)) as parts:
            begin = builder.mul(parts.index, many)
            places = [builder.add(begin, PLACE(LANES * number)) for number in range(TOGETHER)]
            ratios = [
                builder.fmul(load(builder, of_values.data, place, LANES), factor)
                for place in places
            ]
            for level in found:
                builder.store(lowest, level)
            with cgutils.for_range(builder, last) as numbers:
                above = builder.add(numbers.index, PLACE(1))
                border, upper = (
                    everywhere(builder, builder.load(builder.gep(data, [place])), LANES)
                    for data, place in (
                        (of_borders.data, numbers.index),
                        (of_table.data, above),
                    )
                )
                for ratio, level in zip(ratios, found, strict=True):
                    is_above = builder.fcmp_ordered(">=", ratio, border)
                    builder.store(builder.select(is_above, upper, builder.load(level)), level)
            for place, level in zip(places, found, strict=True):
                store(builder, builder.load(level), of_levels.data, place)
        return target.get_dummy_value()

    return types.none(values, types.float32, table, borders, levels), generate


def _fits(block: Block, number: int) -> Sequence[Any]:
    """numbers: the inverse of a step."""
    builder, level = block.builder, block.level(number)
    error = builder.fsub(builder.fmul(block.value(number), block.numbers[0]), level)
    products = builder.fmul(error, error), builder.fmul(error, level)
    return [block.weighed(product, number) for product in products]


sum_fits_to_table = sums_of(_fits, 1, 2, beside=True)
"""Σ w·e² and Σ w·e·L of levels L, and what values are above them, in units of a step. numbers: the
inverse of that step."""
