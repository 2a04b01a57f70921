"""Weights against a base and against each other. All arrays but deltas and sums are bits of floats,
of a kind of `floats`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from ders_core.compute.kernels.floats import BFLOAT16, FLOAT16, widen
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.sums import halved as halved_of
from ders_core.compute.kernels.sums import halved_apart
from ders_core.compute.kernels.vectors import PLACE, doubled, halved, load_bfloat16, struct_of

PIECE, LANES = 256, 8
"""Values whose squares are summed before these sums are; so many are worked on at once."""


@loop
def subtract(weights: np.ndarray, base: np.ndarray, kind: int, deltas: np.ndarray) -> None:
    """deltas: float32 `[n]`, get weights − base, `[n]`."""
    for place in range(deltas.size):
        deltas[place] = widen(weights[place], kind) - widen(base[place], kind)


@loop
def subtract_rows(weights: np.ndarray, base: np.ndarray, kind: int, deltas: np.ndarray) -> None:
    """deltas: float32 `[r, n]`, get weights − base, `[r, in]`, in their first columns; base `[0,
    in]` for one of zeros."""
    for row in range(weights.shape[0]):
        ours, filled = weights[row], deltas[row, : weights.shape[1]]
        if base.shape[0] > 0:
            subtract(ours, base[row], kind, filled)
        else:
            for place in range(filled.size):
                filled[place] = widen(ours[place], kind) - np.float32(0)


@loop
def subtract_columns(
    weights: np.ndarray, base: np.ndarray, kind: int, begin: int, deltas: np.ndarray
) -> None:
    """deltas: float32 `[r, n]`, get weights − base, `[r, in]` each, from column `begin` on."""
    end = begin + deltas.shape[1]
    for row in range(deltas.shape[0]):
        subtract(weights[row, begin:end], base[row, begin:end], kind, deltas[row])


@loop
def count_beyond(values: np.ndarray, kind: int) -> int:
    """How many values are not finite."""
    mask = np.uint32(0x7F800000)
    if kind == BFLOAT16:
        mask = np.uint32(0x7F80)
    elif kind == FLOAT16:
        mask = np.uint32(0x7C00)
    count = 0
    for place in range(values.size):
        count += int(np.uint32(values[place] & mask) == mask)
    return count


@intrinsic  # type: ignore[untyped-decorator]
def squares_of_piece(context: Any, synthesized: Any, weights: Any, base: Any, begin: Any) -> Any:
    """The sums of `squares` for PIECE values in bfloat16, from one on: a tuple of float64."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sources = [
            struct_of(target, builder, signature, arguments, number).data for number in range(3)
        ]

        def terms(number: int) -> Sequence[Any]:
            place = builder.add(arguments[3], PLACE(LANES * number))
            made, exact, start = (
                doubled(builder, load_bfloat16(builder, source, place, LANES)) for source in sources
            )
            error, delta = builder.fsub(exact, made), builder.fsub(exact, start)
            pairs = (error, error), (delta, delta), (exact, exact), (error, delta)
            return [builder.fmul(*pair) for pair in pairs]

        totals = halved(builder, PIECE // LANES, terms, builder.fadd)
        return target.make_tuple(builder, signature.return_type, totals)

    return types.UniTuple(types.float64, 4)(synthesized, weights, base, types.int64), generate


@loop
def squares(
    synthesized: np.ndarray,
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    first: int,
    partial: np.ndarray,
) -> None:
    """partial: float64 `[4, n]`, get Σ(W−Ŵ)², Σ(W−base)², ΣW² and Σ(W−Ŵ)(W−base) of each PIECE
    values, from the place `first` on.

    In many short loops: processors work on several places at once only where a loop has few
    arrays.
    """
    count, quarter = -(-weights.size // PIECE), PIECE // 4
    exact, error = np.zeros(PIECE, np.float64), np.zeros(PIECE, np.float64)
    delta, terms = np.zeros(PIECE, np.float64), np.empty(PIECE, np.float64)
    for number in range(count):
        begin = number * PIECE
        size = min(PIECE, weights.size - begin)
        if size == PIECE and kind == BFLOAT16:
            found = squares_of_piece(synthesized, weights, base, begin)
            for which in range(4):
                partial[which, first + number] = found[which]
            continue
        if size < PIECE:
            exact[:], error[:], delta[:] = 0, 0, 0
        for place in range(size):
            exact[place] = np.float64(widen(weights[begin + place], kind))
        for place in range(size):
            error[place] = exact[place] - np.float64(widen(synthesized[begin + place], kind))
        for place in range(size):
            delta[place] = exact[place] - np.float64(widen(base[begin + place], kind))
        for which in range(4):
            left = delta if which == 1 else exact if which == 2 else error
            right = error if which == 0 else exact if which == 2 else delta
            for place in range(quarter):  # the first two steps of the sum at once
                terms[place] = (
                    left[place] * right[place]
                    + left[place + 2 * quarter] * right[place + 2 * quarter]
                ) + (
                    left[place + quarter] * right[place + quarter]
                    + left[place + 3 * quarter] * right[place + 3 * quarter]
                )
            partial[which, first + number] = halved_of(terms, quarter)


@loop
def total(partial: np.ndarray, sums: np.ndarray) -> None:
    """sums: float64 `[4]`, get those of all that `squares` gave, zeros after it up to a multiple of
    four, which is overwritten."""
    for which in range(4):
        sums[which] = halved_apart(partial[which], partial.shape[1])
