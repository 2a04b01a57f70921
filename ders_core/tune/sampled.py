"""A sample of a stack's rows and matrices, on which codecs are tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ders_core.codecs import Codec
from ders_core.codecs.group import GroupCodec
from ders_core.decompose.decomposition import Decomposition
from ders_core.later import torch
from ders_core.pipeline.judge import Judge
from ders_core.pipeline.knowledge import Knowledge
from ders_core.pipeline.sampling import Rows, SampledMatrix


@dataclass(frozen=True)
class Tried:
    """What was tried of a sample in one codec. rows: which, of the matrices that were `chosen`.
    matrices: these. table: bytes of parts with lengths of their own that a matrix takes however
    many rows it has: what two halves of it take more than the whole."""

    rows: Rows
    matrices: list[SampledMatrix]
    table: float

    def ragged(self, some: Sequence[SampledMatrix]) -> float:
        """What these matrices take of all their rows."""
        return sum(self.table + (each.ragged - self.table) / self.rows.share for each in some)

    def with_more(self, other: Tried) -> Tried:
        """And what was tried of other matrices."""
        rows = replace(self.rows, chosen=self.rows.chosen + other.rows.chosen)
        return Tried(rows, self.matrices + other.matrices, self.table)


@dataclass(frozen=True)
class Sampled:
    """rows: which are tried. decomposition: of these. weights: of the chosen matrices, in storage
    dtype. known: of these rows. seed: the recipe's."""

    rows: Rows
    decomposition: Decomposition
    weights: dict[int, torch.Tensor]
    known: Knowledge
    seed: int

    @classmethod
    def of(cls, rows: Rows, decomposition: Decomposition, known: Knowledge, seed: int) -> Sampled:
        """known: of all rows."""
        weights = {number: decomposition.weight(number) for number in rows.chosen}
        return cls(rows, decomposition, weights, known.of_rows(rows.pieces, rows.share), seed)

    def tried(self, codec: Codec, chosen: Sequence[int]) -> Tried:
        """Of some of the chosen matrices. Raises CodecError."""
        rows = replace(self.rows, chosen=list(chosen))
        matrices = self._matrices(codec, chosen)
        first = rows.chosen[:1] == self.rows.chosen[:1]
        if not first or rows.share == 1 or not codec.ragged or len(rows.pieces) < 2:
            return Tried(rows, matrices, 0.0)
        halves = sum(half._matrices(codec, chosen[:1])[0].ragged for half in self._halves)
        whole = matrices[0].ragged
        return Tried(rows, matrices, float(min(max(halves - whole, 0), whole)))

    def _matrices(self, codec: Codec, chosen: Sequence[int]) -> list[SampledMatrix]:
        same = GroupCodec.same(codec, self.decomposition.group.shape[0])
        fitted = same.fit(self.decomposition.deltas)
        matrices = []
        for number in chosen:
            losses, ragged = self._judges[number].tried(fitted.expert(number))
            matrices.append(SampledMatrix(losses, round(ragged)))
        return matrices

    @cached_property
    def _judges(self) -> dict[int, Judge]:
        """Of each matrix, which keep what all codecs have in common."""
        known, group = self.known, self.decomposition.group
        return {
            number: Judge(
                weight,
                self.decomposition.base_of(number),
                known.context(group, number, self.seed),
                known.charge(number),
                known.router(number),
                known.inputs,
                known.shrinks,
            )
            for number, weight in self.weights.items()
        }

    @cached_property
    def _halves(self) -> tuple[Sampled, Sampled]:
        """Every other piece of the first matrix, and the rest of it."""
        return self._half(0), self._half(1)

    def _half(self, first: int) -> Sampled:
        at, places = 0, list[slice]()
        for piece in self.rows.pieces:
            places.append(slice(at, at + piece.stop - piece.start))
            at = places[-1].stop
        some = places[first::2]
        group = self.decomposition.group.of_rows(some)
        base = torch.cat([self.decomposition.base[piece] for piece in some])
        share = sum(piece.stop - piece.start for piece in some) / at
        rows = replace(self.rows, pieces=some, chosen=self.rows.chosen[:1])
        weights = {
            number: torch.cat([self.weights[number][piece] for piece in some])
            for number in rows.chosen
        }
        decomposition = replace(self.decomposition, group=group, base=base)
        return Sampled(rows, decomposition, weights, self.known.of_rows(some, share), self.seed)
