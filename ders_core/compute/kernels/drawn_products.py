"""Products with entries at places that are drawn from a seed, without a matrix: see `positions`."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import widen
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.positions import BLOCK, permute


@loop
def add(
    values: np.ndarray,
    kind: int,
    gain: np.float32,
    size: int,
    bits: int,
    keys: np.ndarray,
    x: np.ndarray,
    inputs: np.ndarray,
    y: np.ndarray,
    column: int,
    outputs: np.ndarray,
) -> None:
    """y[output, column + row] += gain · value · x[input, place in the row], of the values of one
    matrix at the places that `positions.draw` gives.

    values: floats of that kind `[kept]`. size, bits, keys: as of `draw`, of a matrix that is as
    wide as x, float32 `[n, in]`. inputs, outputs: int64 `[pairs]`. y: float32, two-dimensional.
    """
    width = x.shape[1]
    share = 1.0 / width
    drawn, outside = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.int32)
    places = np.empty(BLOCK, np.int64)
    for begin in range(0, len(values), BLOCK):
        block = min(BLOCK, len(values) - begin)
        for place in range(block):
            drawn[place] = np.uint32(begin + place)
            outside[place] = place
        count = block
        while count > 0:  # what falls outside goes through again
            permute(drawn, count, bits, keys)
            still = 0
            for number in range(count):
                place, value = outside[number], drawn[number]
                places[place] = value
                outside[still], drawn[still] = place, value
                still += int(value >= size)
            count = still
        for number in range(block):
            row = int((places[number] + 0.5) * share)
            entry = places[number] - row * width
            weight = widen(values[begin + number], kind) * gain
            for pair in range(len(inputs)):
                y[outputs[pair], column + row] += weight * x[inputs[pair], entry]
