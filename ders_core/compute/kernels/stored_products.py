"""Products with matrices of stored floats, bfloat16 or float32, for a few inputs: in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.floats import BFLOAT16, FLOAT32, widen
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.vectors import (
    FLOAT,
    PLACE,
    folded,
    load,
    load_bfloat16,
    struct_of,
    zeros,
)

LANES, CHAINS = 8, 4
"""Entries at a time, and how many of these sums go on beside one another."""

STEP = LANES * CHAINS

TOGETHER, CHAINS_EACH = 4, 2
"""Inputs for which a row is read once, and the sums of each that go on beside one another."""

STEP_EACH = LANES * CHAINS_EACH


@intrinsic  # type: ignore[untyped-decorator]
def dot(context: Any, weights: Any, begin: Any, x: Any, first: Any, steps: Any) -> Any:
    """Σ w_j x_j of `steps` times STEP entries, from those places on. weights: the bits of bfloat16,
    uint16, or of float32, uint32."""
    read = load_bfloat16 if weights.dtype is types.uint16 else load

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, inputs = (struct_of(target, builder, signature, arguments, n) for n in (0, 2))
        data = row.data
        if read is load:
            data = builder.bitcast(data, FLOAT.as_pointer())
        none = zeros(FLOAT, LANES)
        totals = [cgutils.alloca_once(builder, none.type) for _ in range(CHAINS)]
        for total in totals:
            builder.store(none, total)
        with cgutils.for_range(builder, arguments[4]) as step:
            for chain, total in enumerate(totals):
                offset = builder.add(builder.mul(step.index, PLACE(STEP)), PLACE(chain * LANES))
                stored = read(builder, data, builder.add(arguments[1], offset), LANES)
                values = load(builder, inputs.data, builder.add(arguments[3], offset), LANES)
                more = builder.fmul(stored, values)
                builder.store(builder.fadd(builder.load(total), more), total)
        summed = [builder.load(total) for total in totals]
        pairs = builder.fadd(summed[0], summed[1]), builder.fadd(summed[2], summed[3])
        return folded(builder, builder.fadd(*pairs), builder.fadd)

    return types.float32(weights, types.int64, x, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _add_dots(
    context: Any, weights: Any, begin: Any, x: Any, first: Any, width: Any, steps: Any, sums: Any
) -> Any:
    """sums: float32 `[TOGETHER]`, get Σ w_j x_j of `steps` times STEP_EACH entries. weights: the
    bits of bfloat16, uint16. x: of as many inputs, `width` apart; all else as of `dot`."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, inputs, found = (
            struct_of(target, builder, signature, arguments, n) for n in (0, 2, 6)
        )
        none = zeros(FLOAT, LANES)
        places = [
            builder.add(arguments[3], builder.mul(arguments[4], PLACE(number)))
            for number in range(TOGETHER)
        ]
        totals = [
            [cgutils.alloca_once(builder, none.type) for _ in range(CHAINS_EACH)] for _ in places
        ]
        for total in (each for chains in totals for each in chains):
            builder.store(none, total)
        with cgutils.for_range(builder, arguments[5]) as step:
            begun = builder.mul(step.index, PLACE(STEP_EACH))
            for chain in range(CHAINS_EACH):
                offset = builder.add(begun, PLACE(chain * LANES))
                stored = load_bfloat16(builder, row.data, builder.add(arguments[1], offset), LANES)
                for place, chains in zip(places, totals, strict=True):
                    values = load(builder, inputs.data, builder.add(place, offset), LANES)
                    more = builder.fmul(stored, values)
                    builder.store(builder.fadd(builder.load(chains[chain]), more), chains[chain])
        for number, (one, two) in enumerate(totals):
            summed = builder.fadd(builder.load(one), builder.load(two))
            address = builder.gep(found.data, [PLACE(number)])
            builder.store(folded(builder, summed, builder.fadd), address)
        return target.get_dummy_value()

    whole = types.int64
    return types.none(weights, whole, x, whole, whole, whole, sums), generate


@loop
def add_to_all(
    weights: np.ndarray, x: np.ndarray, y: np.ndarray, column: int, first: int, last: int
) -> None:
    """y[:, column + row] += w_row · x of every input, of the rows from `first` to `last`.

    weights: `[out, in]`, the bits of bfloat16 (uint16). x: float32 `[n, in]`, contiguous. y:
    float32 `[n, ≥ column + out]`. An input among TOGETHER is summed in fewer chains than one alone,
    so that its last bits differ with how many there are.
    """
    tokens, width = x.shape
    flat, flat_x = weights.reshape(-1), x.reshape(-1)
    sums, steps, steps_each = np.empty(TOGETHER, np.float32), width // STEP, width // STEP_EACH
    for row in range(first, last):
        begin, token = row * width, 0
        while token < tokens:
            here, done = TOGETHER, STEP_EACH * steps_each
            if token + here <= tokens:
                _add_dots(flat, begin, flat_x, token * width, width, steps_each, sums)
            else:
                here, done = 1, STEP * steps
                sums[0] = dot(flat, begin, flat_x, token * width, steps)
            for number in range(token, token + here):
                total = sums[number - token]
                for rest in range(done, width):
                    total += widen(flat[begin + rest], BFLOAT16) * flat_x[number * width + rest]
                y[number, column + row] += total
            token += here


@loop
def add(
    weights: np.ndarray,
    x: np.ndarray,
    inputs: np.ndarray,
    experts: np.ndarray,
    y: np.ndarray,
    column: int,
    outputs: np.ndarray,
    first: int,
    last: int,
) -> None:
    """y[output, column + row] += w_row · x[input], of the rows from `first` to `last` and every
    pair with an expert from 0 on.

    weights: `[experts, out, in]`, the bits of bfloat16 (uint16) or float32 (uint32). x: float32
    `[n, in]`. inputs, experts, outputs: int64 `[pairs]`. y: float32, two-dimensional.
    """
    _, out, width = weights.shape
    kind = BFLOAT16 if weights.itemsize == 2 else FLOAT32
    flat, flat_x = weights.reshape(-1), x.reshape(-1)
    steps = width // STEP
    for row in range(first, last):
        for pair in range(len(experts)):
            if experts[pair] < 0:
                continue
            begin, place = (experts[pair] * out + row) * width, inputs[pair] * width
            total = dot(flat, begin, flat_x, place, steps)
            for rest in range(STEP * steps, width):
                total += widen(flat[begin + rest], kind) * flat_x[place + rest]
            y[outputs[pair], column + row] += total
