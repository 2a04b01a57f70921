"""A sample of a stack's rows and matrices, on which codecs are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from ders_core.codecs import Codec
from ders_core.codecs.group import GroupCodec
from ders_core.codecs.tried_matrix import WholeDelta
from ders_core.decompose.decomposition import Decomposition
from ders_core.errors import CodecError
from ders_core.later import torch
from ders_core.pipeline.knowledge import Knowledge
from ders_core.pipeline.sampling import Rows, SampledMatrix
from ders_core.tune.sampled_judge import SampledJudge


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
    dtype. known: of these rows. seed: the recipe's. whole: of a matrix, all rows of its delta, for
    codecs that do not act on rows; None where there are none. fits: codecs that were settled on the
    deltas, which all matrices share."""

    rows: Rows
    decomposition: Decomposition
    weights: dict[int, torch.Tensor]
    known: Knowledge
    seed: int
    whole: Callable[[int], WholeDelta] | None = None
    fits: dict[Codec, GroupCodec] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        rows: Rows,
        decomposition: Decomposition,
        known: Knowledge,
        seed: int,
        whole: Callable[[int], WholeDelta] | None = None,
    ) -> Sampled:
        """known: of all rows."""
        weights = {number: decomposition.weight(number) for number in rows.chosen}
        of_rows = known.of_rows(rows.pieces, rows.share)
        return cls(rows, decomposition, weights, of_rows, seed, whole)

    def tried(self, codecs: Sequence[Codec], chosen: Sequence[int]) -> dict[Codec, Tried]:
        """Of some of the chosen matrices in each codec, but for those whose steps are too fine for
        the values."""
        rows, tables = replace(self.rows, chosen=list(chosen)), dict[Codec, float]()
        first = self._matrices(codecs, chosen[:1])
        has_first = rows.chosen[:1] == self.rows.chosen[:1]
        if has_first and rows.share < 1 and len(rows.pieces) > 1:
            tables = self._tables({codec: each[0].ragged for codec, each in first.items()})
        others = self._matrices(list(first), chosen[1:])
        return {
            codec: Tried(rows, first[codec] + each, tables.get(codec, 0.0))
            for codec, each in others.items()
        }

    def _tables(self, wholes: Mapping[Codec, int]) -> dict[Codec, float]:
        """`Tried.table` of each codec. wholes: bytes of the first matrix."""
        number = self.rows.chosen[0]
        judges = [self._half(first)._judge(number) for first in (0, 1)]
        tables = dict[Codec, float]()
        for codec in (codec for codec in wholes if codec.ragged):
            settled = self._fitted(codec).expert(number)
            with suppress(CodecError):
                halves = sum(judge.ragged_bytes(settled) for judge in judges)
                tables[codec] = min(max(halves - wholes[codec], 0.0), float(wholes[codec]))
        return tables

    def _fitted(self, codec: Codec) -> GroupCodec:
        """Settled on the deltas when it is first asked for."""
        if codec not in self.fits:
            same = GroupCodec.same(codec, self.decomposition.group.shape[0])
            self.fits[codec] = same.fit(self.decomposition.deltas)
        return self.fits[codec]

    def _matrices(
        self, codecs: Sequence[Codec], chosen: Sequence[int]
    ) -> dict[Codec, list[SampledMatrix]]:
        """Matrix after matrix, so that what codecs have in common is kept for one at a time."""
        found: dict[Codec, list[SampledMatrix]] = {codec: [] for codec in codecs}
        for number in chosen:
            left = list(found)
            tried = self._judge(number).tried(
                [self._fitted(codec).expert(number) for codec in left]
            )
            for codec, each in zip(left, tried, strict=True):
                if each is None:
                    del found[codec]
                else:
                    losses, ragged = each
                    found[codec].append(SampledMatrix(losses, round(ragged)))
        return found

    def _judge(self, number: int) -> SampledJudge:
        """Of a matrix; it keeps what all codecs have in common."""
        known = self.known
        return SampledJudge(
            self.weights[number],
            self.decomposition.base_of(number),
            known.context(self.decomposition.group, number, self.seed),
            known.charge(number),
            known.router(number),
            known.inputs,
            known.shrinks,
            None if self.whole is None else partial(self.whole, number),
        )

    def _half(self, first: int) -> Sampled:
        """Every other piece of the first matrix, from the first or the second one on."""
        at, places = 0, list[slice]()
        for piece in self.rows.pieces:
            places.append(slice(at, at + piece.stop - piece.start))
            at = places[-1].stop
        some = places[first::2]
        whole, pieces = self.whole, self.rows.pieces[first::2]
        group = self.decomposition.group.of_rows(some)
        base = torch.cat([self.decomposition.base[piece] for piece in some])
        share = sum(piece.stop - piece.start for piece in some) / at
        rows = replace(self.rows, pieces=some, chosen=self.rows.chosen[:1])
        weights = {
            number: torch.cat([self.weights[number][piece] for piece in some])
            for number in rows.chosen
        }
        decomposition = replace(self.decomposition, group=group, base=base)
        known = self.known.of_rows(some, share)
        return Sampled(
            rows,
            decomposition,
            weights,
            known,
            self.seed,
            None if whole is None else lambda number: replace(whole(number), pieces=pieces),
        )
