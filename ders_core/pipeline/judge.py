"""What a matrix loses that came back otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ders_core.codecs import EncodeContext
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.synthesis import combine
from ders_core.compute.pieces import chunk_values, pieces, row_pieces
from ders_core.compute.sums import SUMMED_FIRST
from ders_core.compute.threads import each_piece
from ders_core.decompose.distortion import (
    Squares,
    gain_of,
    in_float32,
    output_pieces,
    sums_of,
    sums_of_pieces,
)
from ders_core.later import torch
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.effective_gain import Correlated, effective_gain, mixed_gain
from ders_core.pipeline.noise import Deviation

OUTPUT_ROWS = 1024
"""Rows of a matrix by which the error of its outputs is judged, if it has more: products of all of
them with full moments take longer than rounding that makes up for errors."""

OUTPUT_BYTES = 16
"""Of each entry of rows whose outputs are judged: four values in float32."""


def judges_some_rows(out: int, *, is_full: bool) -> bool:
    """Whether only OUTPUT_ROWS of so many rows are judged. is_full: of the moments."""
    return is_full and out > OUTPUT_ROWS


@dataclass(frozen=True)
class Probe:
    """‖Ŵ−W‖² of some rows of some experts, rounded to the dtype of the weights, and before that."""

    rounded: float = 0.0
    unrounded: float = 0.0

    def __add__(self, other: Probe) -> Probe:
        return Probe(self.rounded + other.rounded, self.unrounded + other.unrounded)

    @property
    def rounding(self) -> float:
        """The share of ‖Ŵ−W‖² that is rounding; below 0 where that brings weights nearer to what
        they were."""
        return 1 - self.unrounded / self.rounded if self.rounded else 0.0


def probe_sums(
    synthesized: torch.Tensor, base: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The numbers of a probe, float64 `[2]` on the device of the weight. Of the same rows: Ŵ, what
    it is the rounded sum of, and W."""
    after = sums_of(synthesized, weight)[0]
    before = torch.zeros_like(after)
    _add_unrounded(before, base, delta, weight)
    return torch.stack([after, before])


def _add_unrounded(
    total: torch.Tensor, base: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor
) -> None:
    """Add ‖base + delta − W‖² of some rows, a few at a time."""
    for rows in row_pieces(weight.shape, chunk_values(weight.device)):
        unrounded = combine(base[rows].float(), delta[rows])
        total += sums_of(unrounded, weight[rows].float())[0]


def probe_in_turn(
    decode: Callable[[slice], torch.Tensor],
    at_once: int,
    rows: slice,
    weight: torch.Tensor,
    base: torch.Tensor,
    rounded_from: torch.Tensor,
) -> torch.Tensor:
    """`probe_sums` of some rows of a matrix, whose delta is decoded a few rows at a time: it takes
    twice as much memory as they do. decode: gives the delta of rows of the matrix, float32.
    at_once: how many values, about. base, rounded_from: `[out, in]`, what the delta is added to,
    and what Ŵ is the rounded sum of."""
    width = max(weight.shape[1], 1)
    step = math.lcm(
        max(chunk_values(weight.device) // width, 1), SUMMED_FIRST // math.gcd(SUMMED_FIRST, width)
    )
    before = torch.zeros((), dtype=torch.float64, device=weight.device)
    at_once = chunk_values(weight.device, at_once) // (width * step)

    def synthesized() -> Iterator[torch.Tensor]:
        for part in pieces(rows.stop - rows.start, max(at_once, 1) * step):
            part = slice(rows.start + part.start, rows.start + part.stop)
            delta = decode(part)
            _add_unrounded(before, rounded_from[part], delta, weight[part])
            yield combine(base[part], delta).view(-1)

    after = sums_of_pieces(synthesized(), weight[rows], weight[rows])[0]
    return torch.stack([after, before])


def sums_of_weights(squares: torch.Tensor, own: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
    """`Judge.sums` where neither inputs nor costs are known; the same arguments."""
    return torch.cat([squares, own, squares.new_zeros(4), probe, squares.new_zeros(2)])


@dataclass(frozen=True)
class Losses:
    """What one or more experts lose. own: of the deltas alone, where the base has an error that all
    experts share; else as `squares`. output, energy: E‖(Ŵ−W)x‖² and E‖Wx‖² of at most
    OUTPUT_ROWS rows a matrix where moments are full, 0 without second moments. noise_cost: ½ Σ C
    E² of the noise, in nats a token, 0 without gradients. router_noise: ½ Σ R E², 0 where it is
    not known. probe: of the experts whose rounding was measured. correlated: of the deltas, 0
    without gradients."""

    squares: Squares = field(default_factory=Squares)
    own: Squares = field(default_factory=Squares)
    output: float = 0.0
    energy: float = 0.0
    noise_cost: float = 0.0
    router_noise: float = 0.0
    probe: Probe = field(default_factory=Probe)
    correlated: Correlated = field(default_factory=Correlated)

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Losses:
        """Of the numbers of `Judge.sums`."""
        output, energy, noise_cost, router_noise, *rest = numbers[8:]
        squares, own = Squares.of(numbers[:4]), Squares.of(numbers[4:8])
        probe, correlated = Probe(*rest[:2]), Correlated(*rest[2:])
        return cls(squares, own, output, energy, noise_cost, router_noise, probe, correlated)

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            self.squares + other.squares,
            self.own + other.own,
            self.output + other.output,
            self.energy + other.energy,
            self.noise_cost + other.noise_cost,
            self.router_noise + other.router_noise,
            self.probe + other.probe,
            self.correlated + other.correlated,
        )

    @property
    def effective_gain(self) -> float:
        """Of the deltas, see `ders_core.pipeline.effective_gain`."""
        return effective_gain(self.own, self.correlated)

    @property
    def output_error(self) -> float | None:
        """√ of E‖(Ŵ−W)x‖² / E‖Wx‖²; None where there is nothing to compare with."""
        return (self.output / self.energy) ** 0.5 if self.energy else None


@dataclass(frozen=True)
class Judge:
    """Says what a matrix loses. weight, start: `[out, in]` in storage dtype, and what its delta is
    taken against. The rest: as of
    `ders_core.pipeline.knowledge.encode_expert`."""

    weight: torch.Tensor
    start: torch.Tensor
    context: EncodeContext
    charge: Curvature | None = None
    router: Curvature | None = None
    inputs: Inputs | None = None
    shrinks: bool = True

    def sums(
        self,
        chosen: torch.Tensor,
        judged: torch.Tensor | None,
        squares: torch.Tensor,
        own: torch.Tensor,
        probe: torch.Tensor,
    ) -> torch.Tensor:
        """All that is to be known for `Losses.of`: float64 `[16]` on the device of the weight,
        which nothing waits for.

        chosen: Ŵ, or the rows of it that outputs are judged by (`row_numbers`). judged: Ŵ where the
        delta is added to `start`; may be None without a charge. squares, own: `[4]`, `sums_of` Ŵ
        against the base and of the other against `start`. probe: of `probe_sums`.
        """
        nothing = torch.zeros_like(squares[0])
        noise_cost = router_noise = nothing
        correlated, moments = torch.zeros_like(squares[:2]), self.context.moments
        numbers = self.row_numbers()
        is_whole = len(chosen) == len(self.weight)
        assert is_whole or (numbers is not None and len(chosen) == len(numbers))

        def error(some: slice, rows: slice | torch.Tensor) -> torch.Tensor:
            synthesized = chosen[rows if is_whole else some]
            return in_float32(synthesized).sub_(in_float32(self.weight[rows]))

        output = self._of_outputs(error)
        if self.charge is not None:
            assert judged is not None
            deviation, kept = Deviation(judged, self.weight, self.start), nothing + 1
            if self.shrinks:
                gain = gain_of(own)
                noise = deviation.noise_sums(gain, self.charge, moments)
                correlated = noise.correlated
                kept = mixed_gain(gain, correlated)
                noise_cost = noise.cost(kept)
            else:
                noise_cost = deviation.noise_cost(kept, self.charge, moments)
            if self.router is not None:
                router_noise = deviation.noise_cost(kept, self.router, moments)
        costs = torch.stack([output, self._energy_of_outputs(), noise_cost, router_noise])
        return torch.cat([squares, own, costs, probe, correlated])

    def _energy_of_outputs(self) -> torch.Tensor:
        """E‖Wx‖² of the chosen rows; 0 without second moments."""
        return self._of_outputs(lambda _, rows: in_float32(self.weight[rows]))

    def row_numbers(self) -> torch.Tensor | None:
        """The rows that outputs are judged by, int64 `[rows]`: some that are spread evenly, where
        moments are full and there are more; None for all."""
        out, inputs = len(self.weight), self.inputs
        if inputs is None or not judges_some_rows(out, is_full=inputs.believed.dim() == 2):
            return None
        return torch.arange(OUTPUT_ROWS, device=self.weight.device) * out // OUTPUT_ROWS

    def _of_outputs(
        self, error: Callable[[slice, slice | torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """E‖Ex‖² of the chosen rows, float64 `[]`; 0 without second moments. error: some rows of E,
        float32; gets which these are of those that are chosen, and of the matrix."""
        total = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        if self.inputs is None:
            return total
        inputs, chosen = self.inputs, self._chosen(self.inputs)
        squares = [total] * len(chosen)

        def add(number: int) -> None:
            squares[number] = inputs.output_squared(error(*chosen[number]))

        most = max((some.stop - some.start for some, _ in chosen), default=0)
        each_piece(add, range(len(chosen)), OUTPUT_BYTES * most * self.weight.shape[1])
        for square in squares:
            total = total + square
        return total

    def _chosen(self, inputs: Inputs) -> list[tuple[slice, slice | torch.Tensor]]:
        """The rows that outputs are judged by, a few at a time: which these are of those that are
        chosen, and of the matrix."""
        (out, width), numbers = self.weight.shape, self.row_numbers()
        count = out if numbers is None else len(numbers)
        parts = output_pieces((count, width), inputs.believed)
        return [(some, some if numbers is None else numbers[some]) for some in parts]
