"""What a matrix loses that came back otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ders_core.codecs import Codec, EncodeContext
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.synthesis import combine
from ders_core.codecs.tried_matrix import TriedMatrix, WholeDelta
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.decompose.distortion import Squares, compare, output_pieces
from ders_core.later import torch
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.effective_gain import Correlated, effective_gain
from ders_core.pipeline.noise import Deviation

OUTPUT_ROWS = 1024
"""Rows of a matrix by which the error of its outputs is judged, if it has more: products of all of
them with full moments take longer than rounding that makes up for errors."""


@dataclass(frozen=True)
class Probe:
    """‖Ŵ−W‖² of some rows of some experts, rounded to the dtype of the weights, and before that."""

    rounded: float = 0.0
    unrounded: float = 0.0

    @classmethod
    def of(
        cls,
        synthesized: torch.Tensor,
        base: torch.Tensor,
        delta: torch.Tensor,
        weight: torch.Tensor,
    ) -> Probe:
        """Of the same rows: Ŵ, what it is the rounded sum of, and W."""
        before = 0.0
        for rows in row_pieces(weight.shape, chunk_values(weight.device)):
            unrounded = combine(base[rows].float(), delta[rows])
            before += compare(unrounded, weight[rows].float()).error
        return cls(compare(synthesized, weight).error, before)

    def __add__(self, other: Probe) -> Probe:
        return Probe(self.rounded + other.rounded, self.unrounded + other.unrounded)

    @property
    def rounding(self) -> float:
        """The share of ‖Ŵ−W‖² that is rounding; below 0 where that brings weights nearer to what
        they were."""
        return 1 - self.unrounded / self.rounded if self.rounded else 0.0


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
    `ders_core.pipeline.knowledge.encode_expert`. find_whole: as of `TriedMatrix`."""

    weight: torch.Tensor
    start: torch.Tensor
    context: EncodeContext
    charge: Curvature | None = None
    router: Curvature | None = None
    inputs: Inputs | None = None
    shrinks: bool = True
    find_whole: Callable[[], WholeDelta] | None = None

    def tried(self, codec: Codec) -> tuple[Losses, float]:
        """What it loses in a codec whose delta is added to what it is taken against, and about the
        bytes of `ragged` parts. Raises CodecError."""
        synthesized, ragged = codec.tried(self._matrix, self.context)
        squares = compare(synthesized, self.weight, self.start)
        return self.losses(synthesized, synthesized, squares, squares, Probe()), ragged

    def ragged_bytes(self, codec: Codec) -> float:
        """The second alone. Raises CodecError."""
        return codec.tried(self._matrix, self.context)[1]

    def losses(
        self,
        synthesized: torch.Tensor,
        judged: torch.Tensor,
        squares: Squares,
        own: Squares,
        probe: Probe,
    ) -> Losses:
        """synthesized: Ŵ. judged: the same where the delta is added to `start`. squares, own,
        probe: of `Losses`."""
        output, noise_cost, router_noise = 0.0, 0.0, 0.0
        correlated, moments = Correlated(), self.context.moments
        if self.inputs is not None:
            output = self._output(synthesized, self.inputs)
        if self.charge is not None:
            deviation, kept = Deviation(judged, self.weight, self.start), 1.0
            if self.shrinks:
                sums = deviation.noise_sums(own.gain, self.charge, moments)
                correlated = sums.correlated
                kept = effective_gain(own, correlated)
                noise_cost = sums.cost(kept)
            else:
                noise_cost = deviation.noise_cost(kept, self.charge, moments)
            if self.router is not None:
                router_noise = deviation.noise_cost(kept, self.router, moments)
        return Losses(
            squares, own, output, self._energy, noise_cost, router_noise, probe, correlated
        )

    @cached_property
    def _matrix(self) -> TriedMatrix:
        return TriedMatrix(self.weight, self.start, self.find_whole)

    @cached_property
    def _energy(self) -> float:
        """E‖Wx‖² of the chosen rows; 0 without second moments."""
        if self.inputs is None:
            return 0.0
        pieces = self._chosen(self.inputs)
        return sum(self.inputs.output_squared(self.weight[rows].float()) for rows in pieces)

    def _output(self, synthesized: torch.Tensor, inputs: Inputs) -> float:
        """E‖(Ŵ−W)x‖² of the chosen rows."""
        return sum(
            inputs.output_squared(synthesized[rows].float().sub_(self.weight[rows].float()))
            for rows in self._chosen(inputs)
        )

    def _chosen(self, inputs: Inputs) -> Iterator[torch.Tensor]:
        """The rows that outputs are judged by, a few at a time: all, or some that are spread evenly
        where moments are full."""
        (total, width), moments = self.weight.shape, inputs.believed
        count = total if moments.dim() == 1 else min(total, OUTPUT_ROWS)
        rows = torch.arange(count, device=self.weight.device) * total // max(count, 1)
        return (rows[piece] for piece in output_pieces((count, width), moments))
