"""`entropy`: entries are rounded to multiples of a step, and the multiples are entropy-coded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import DeltaCodec, EncodeContext, Parts, register
from ders_core.codecs.coding.ans import Model, Stack, code_bytes
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.codecs.fitting import gaussian_error
from ders_core.codecs.statistics import DeltaStatistics
from ders_core.compute.pieces import chunk_values, largest_magnitude, pieces
from ders_core.files.spec import TensorSpec

CHUNK = 1 << 19
"""Values at a time."""

SAMPLE = 1 << 17
ROUNDINGS = (0.5, 0.44, 0.38, 0.32)
"""Added before the fraction is cut: the smaller, the wider the interval that becomes zero."""

EXACT_CODES = 4096
PER_OCTAVE = 16
"""Multiples beyond EXACT_CODES share codes, this many to a doubling, so that outliers do not fill
the table."""

FINEST = 512
"""The finest step is the median magnitude over this: over 10 bits, more than a recipe may ask."""

FARTHEST = EXACT_CODES + 64 * PER_OCTAVE

SEARCHES = 16
"""Halvings of the range that contains the step."""

SLACK = 1.0002
"""What the coder may take above the entropy."""

COUNTED = 4 + 4
"""Bytes of the table for each code: its level in float32, and how often it occurs."""


@register
class Entropy(DeltaCodec):
    """Δ ≈ the centroid of all entries that round to the same multiple of a step; the multiples are
    entropy-coded with an adaptive zero (entropy-coded scalar quantization).

    The step is the smallest with which an expert takes at most `bits` per entry, tables included.
    The whole matrix has one step, as rate-distortion theory asks for (all errors alike; Cover and
    Thomas, ch. 10). For a Gaussian its squared error is 0.2 dB above the
    Shannon bound at 0.1 bit, 1.4 dB at 1 bit and 1.53 dB (¼ bit) at many (Gish and Pierce 1968).
    Slower to decode than `quantized`, and on the CPU.
    """

    name: ClassVar[str] = "entropy"
    summary: ClassVar[str] = "Rounds entries to multiples of a step and entropy-codes them."
    source: ClassVar[str] = "Gish and Pierce 1968; ANS (arXiv 1311.2540)"
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("entropy", strength=Strength("bits", "most bits per entry", 1, 0.05, 8, 0.05, 0.1)),
    )
    menu_place: ClassVar[int] = 4
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({"bits": 0.3}, {"bits": 1.5}, {"bits": 8})

    bits: float = Field(gt=0, le=8, description="the most bits per entry, tables included")

    @property
    def label(self) -> str:
        return f"entropy-coded, {self.bits:g} bits"

    @property
    def ragged(self) -> frozenset[str]:
        return frozenset({"stream"})

    def _limit(self, shape: tuple[int, int]) -> int:
        """The most bytes of a stream: the budget, or what zeros alone take."""
        return max(math.floor(self.bits * math.prod(shape) / 8), 4 + COUNTED)

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        return {"stream": TensorSpec(torch.uint8, (self._limit(shape),))}

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        limit = self._limit((delta.shape[0], delta.shape[1]))
        flat = delta.reshape(-1).cpu()
        largest = largest_magnitude(flat)
        step, rounding = _first_guess(flat, largest, limit)
        codes = torch.empty(flat.numel(), dtype=torch.int32)
        while True:
            counts = torch.zeros(2 * FARTHEST + 1, dtype=torch.int64)
            for piece in pieces(flat.numel(), chunk_values(flat.device, CHUNK)):
                codes[piece] = _codes(flat[piece], step, rounding).add_(FARTHEST)
                counts += torch.bincount(codes[piece], minlength=counts.numel())
            size = _size(counts.numpy(), SLACK)
            if size <= limit:
                stream = _written(flat, codes, counts)
                if stream.numel() <= limit:
                    return {"stream": stream.to(delta.device)}
            if step > 4 * largest:
                raise AssertionError("zeros alone are within every limit")
            excess = 8 * (size - limit) / max(flat.numel(), 1)
            step *= 2 ** min(max(excess, 0.001), 1.0)

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        stream, size = Reader(parts["stream"]), math.prod(shape)
        count = stream.number()
        levels = torch.from_numpy(stream.take(count, "<f4").copy())
        counts = stream.take(count, "<u4").astype(np.int64)
        if counts.sum() != size or not bool(torch.isfinite(levels).all()):
            raise damaged()
        if not size:
            return torch.zeros(shape, device=parts["stream"].device)
        index = Stack(stream.rest("<u4")).pop(size, Model(counts))
        delta = levels.index_select(0, torch.from_numpy(index))
        return delta.view(shape).to(parts["stream"].device)

    def expected_error(self, statistics: DeltaStatistics) -> float:
        """As for Gaussian values of one variance."""
        return gaussian_error.of_entropy_coding(self.bits)


def _codes(values: torch.Tensor, step: float, rounding: float) -> torch.Tensor:
    """int32 codes of values, from −FARTHEST to FARTHEST, ascending with them; 0 is zero's."""
    ratio = (values.abs() / step).add_(rounding)
    codes = ratio.clamp_max(EXACT_CODES).to(torch.int32)
    far = (ratio > EXACT_CODES).nonzero().flatten()
    if far.numel():
        octaves = torch.log2(ratio[far].double() / EXACT_CODES) * PER_OCTAVE
        codes[far] = EXACT_CODES + octaves.clamp(0, FARTHEST - EXACT_CODES).to(torch.int32)
    return torch.where(values < 0, -codes, codes)


def _size(counts: np.ndarray, slack: float = 1.0) -> float:
    """Bytes of a stream with these counts, including the last words of the coder."""
    codes = int((counts > 0).sum())
    return 4 + codes * COUNTED + slack * code_bytes(counts) + 8 * (codes > 1)


def _written(values: torch.Tensor, codes: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The stream: table and codes. codes: non-negative; `counts` says how often each occurs."""
    occurring = counts.nonzero().flatten()
    number = torch.zeros_like(counts, dtype=torch.int32)
    number[occurring] = torch.arange(occurring.numel(), dtype=torch.int32)
    largest = largest_magnitude(values)
    shares = values.double().div_(largest or 1.0)
    total = torch.bincount(codes, shares, minlength=counts.numel())
    del shares
    writer = Writer()
    writer.put([occurring.numel()], "<u4")
    writer.put((total[occurring] / counts[occurring] * largest).numpy(), "<f4")
    writer.put(counts[occurring].numpy(), "<u4")
    if occurring.numel():
        stack = Stack()
        stack.push(number.index_select(0, codes).numpy(), Model(counts[occurring].numpy()))
        writer.put(stack.words(), "<u4")
    return writer.tensor()


def _first_guess(flat: torch.Tensor, largest: float, limit: int) -> tuple[float, float]:
    """(step, rounding) with the least squared error on a sample, within `limit` bytes in all."""
    if not largest:
        return 1.0, ROUNDINGS[0]
    sample = _Sample(flat[:: -(-flat.numel() // SAMPLE)] / largest, flat.numel())
    finest = math.log2(sample.typical / FINEST)
    best = (math.inf, 1.0, ROUNDINGS[0])
    for rounding in ROUNDINGS:
        low, high = finest, 2.0  # log2 of the step; more bytes than allowed, and fewer
        for _ in range(SEARCHES):
            middle = (low + high) / 2
            size, error = sample.coded(2.0**middle, rounding)
            if size > limit:
                low = middle
            else:
                high = middle
                best = min(best, (error, 2.0**high, rounding))
    return best[1] * largest, best[2]


class _Sample:
    """Values in ascending order with their running sums: what shares a code is a stretch of them.

    values: `[n]` with a largest magnitude of 1, of a matrix of `count` values.
    """

    def __init__(self, values: torch.Tensor, count: int) -> None:
        self._sorted = np.sort(values.numpy()).astype(np.float64)
        self._sums = np.concatenate([[0.0], self._sorted.cumsum()])
        self._energy = float(np.square(self._sorted).sum())
        self._grown = count / len(self._sorted)
        magnitudes = np.abs(self._sorted[self._sorted != 0])
        self.typical = float(np.median(magnitudes)) if len(magnitudes) else 1.0

    def coded(self, step: float, rounding: float) -> tuple[float, float]:
        """(bytes for the whole matrix, squared error of the sample), as `_codes` codes it."""
        ends = (_ends(1 / step + rounding) - rounding) * step
        below = np.searchsorted(self._sorted, -ends[::-1], "right")
        above = np.searchsorted(self._sorted, ends, "left")
        edges = np.concatenate([[0], below, above, [len(self._sorted)]])
        counts = np.diff(edges)
        filled = counts > 0
        counts, totals = counts[filled], np.diff(self._sums[edges])[filled]
        error = self._energy - float((totals * totals / counts).sum())
        return _size(counts * self._grown), error


def _ends(largest: float) -> np.ndarray:
    """The ratios up to `largest` at which `_codes` goes over to the next code, float64."""
    near = np.arange(1.0, min(largest, EXACT_CODES) + 1)
    octaves = np.arange(1, FARTHEST - EXACT_CODES + 1) / PER_OCTAVE
    far = EXACT_CODES * 2.0**octaves if largest > EXACT_CODES else octaves[:0]
    return np.concatenate([near, far])
