"""What the search for lines sums over a block, in the processor's registers.

As `even_levels`, with whose sums these share their sizes and order: values u of a block lie on
levels L that are 1 apart from 0 up, u ≈ s·L + z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ders_core.compute.kernels.even_levels import (
    LANES,
    Block,
    called,
    larger,
    sums_of,
)
from ders_core.compute.kernels.vectors import FLOAT, constants, zeros


def _among(block: Block, vector: Any, number: int) -> Sequence[Any]:
    """The vector; −∞ for values of no weight."""
    weight = block.weight(number)
    if weight is None:
        return [vector]
    builder, nothing = block.builder, constants(FLOAT, LANES, float("-inf"))
    is_seen = builder.fcmp_ordered(">", weight, zeros(FLOAT, LANES))
    return [builder.select(is_seen, vector, nothing)]


def _values(block: Block, number: int) -> Sequence[Any]:
    return _among(block, block.value(number), number)


def _negated(block: Block, number: int) -> Sequence[Any]:
    return _among(block, block.builder.fneg(block.value(number)), number)


def _level(block: Block, number: int) -> tuple[Any, Any]:
    """(u, the nearest L). numbers: z, s and the highest level, and others after them."""
    builder, value, (ahead, step, top) = block.builder, block.value(number), block.numbers[:3]
    ratio = builder.fdiv(builder.fsub(value, ahead), step)
    up = called(builder, "floor", builder.fadd(ratio, constants(FLOAT, LANES, 0.5)))
    level = larger(builder, up, zeros(FLOAT, LANES))
    return value, builder.select(builder.fcmp_ordered("<", level, top), level, top)


def _levels(block: Block, number: int) -> Sequence[Any]:
    return [block.weighed(_level(block, number)[1], number)]


def _fits(block: Block, number: int) -> Sequence[Any]:
    """numbers: those of `_level`, the mean of L and that of u."""
    builder, (value, level) = block.builder, _level(block, number)
    centre, middle = block.numbers[3:]
    apart = block.weighed(builder.fsub(level, centre), number)
    beside = builder.fsub(value, middle)
    return [builder.fmul(apart, level), builder.fmul(apart, beside)]


def _errors(block: Block, number: int) -> Sequence[Any]:
    """numbers: those of `_level`, and s once more, which may be 0."""
    builder, (value, level) = block.builder, _level(block, number)
    line = builder.fadd(builder.fmul(level, block.numbers[3]), block.numbers[0])
    error = builder.fsub(value, line)
    return [block.weighed(builder.fmul(error, error), number)]


highest = sums_of(_values, 0, of_largest=True)
"""max u of the values whose weight is above 0."""

lowest_negated = sums_of(_negated, 0, of_largest=True)
"""−min u of them."""

sum_values = sums_of(lambda block, number: [block.weighed(block.value(number), number)], 0)
"""Σ w·u."""

sum_levels = sums_of(_levels, 3)
"""Σ w·L. numbers: those of `_level`."""

sum_fits = sums_of(_fits, 5, 2)
"""Σ w·(L − L̄)·L and Σ w·(L − L̄)·(u − ū). numbers: those of `_fits`."""

sum_errors = sums_of(_errors, 4)
"""Σ w·(u − s·L − z)². numbers: those of `_errors`."""
