"""Says what a matrix of a sample loses in many codecs, several of them at once.

A sample has few rows: products of these with second moments take longer a row than those of many,
and what is called around them takes as long again. So the errors of several codecs are one stack of
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs import Codec
from ders_core.codecs.synthesis import difference
from ders_core.codecs.tried_matrix import TriedMatrix, WholeDelta
from ders_core.decompose.distortion import gain_of, sums_of
from ders_core.errors import CodecError
from ders_core.later import torch
from ders_core.pipeline.effective_gain import mixed_gain
from ders_core.pipeline.judge import Judge, Losses
from ders_core.pipeline.noise import Deviations

VALUES = 1 << 20
"""Of errors in a stack, about."""


@dataclass(frozen=True)
class SampledJudge(Judge):
    """find_whole: as of `TriedMatrix`."""

    find_whole: Callable[[], WholeDelta] | None = None

    def tried(self, codecs: Sequence[Codec]) -> Iterator[tuple[Losses, float] | None]:
        """What it loses in each codec, whose delta is added to what it is taken against, and about
        the bytes of `ragged` parts; None where the codec raises CodecError."""
        many = max(VALUES // max(self.weight.numel(), 1), 1)
        for begin in range(0, len(codecs), many):
            found = [self._synthesized(codec) for codec in codecs[begin : begin + many]]
            back = [each for each in found if each is not None]
            losses = iter(self._losses([synthesized for synthesized, _ in back]))
            for each in found:
                yield None if each is None else (next(losses), each[1])

    def ragged_bytes(self, codec: Codec) -> float:
        """About the bytes of `ragged` parts. Raises CodecError."""
        return codec.tried(self._matrix, self.context)[1]

    def _synthesized(self, codec: Codec) -> tuple[torch.Tensor, float] | None:
        try:
            return codec.tried(self._matrix, self.context)
        except CodecError:
            return None

    @cached_property
    def _matrix(self) -> TriedMatrix:
        return TriedMatrix(self.weight, self.start, self.find_whole)

    @cached_property
    def _energy(self) -> torch.Tensor:
        return self._energy_of_outputs()

    def _losses(self, synthesized: Sequence[torch.Tensor]) -> list[Losses]:
        """Of each Ŵ, as `sums` tells them."""
        if not synthesized:
            return []
        squares = torch.stack([sums_of(each, self.weight, self.start) for each in synthesized])
        errors = torch.stack([difference(each, self.weight) for each in synthesized])
        nothing = squares.new_zeros(len(squares))
        noise_costs = router_noises = nothing
        correlated, moments = squares.new_zeros(2, len(squares)), self.context.moments
        if self.charge is not None:
            deviations, kept = Deviations(errors, self._matrix.delta.matrix), nothing + 1
            if self.shrinks:
                noise = deviations.noise_sums(gain_of(squares.T), self.charge, moments)
                correlated = noise.correlated
                kept = mixed_gain(noise.gain, correlated)
                noise_costs = noise.cost(kept)
            else:
                noise_costs = deviations.noise_costs(kept, self.charge, moments)
            if self.router is not None:
                router_noises = deviations.noise_costs(kept, self.router, moments)
        costs = [self._outputs(errors), self._energy.expand_as(nothing), noise_costs, router_noises]
        probe = [nothing, nothing]
        numbers = torch.cat([squares.T, squares.T, torch.stack([*costs, *probe]), correlated])
        return [Losses.of(each) for each in numbers.T.tolist()]

    def _outputs(self, errors: torch.Tensor) -> torch.Tensor:
        """E‖Ex‖² of the chosen rows of each error; 0 without second moments."""
        total = torch.zeros(len(errors), dtype=torch.float64)
        if self.inputs is not None:
            for _, rows in self._chosen(self.inputs):
                total += self.inputs.outputs_squared(errors[:, rows])
        return total
