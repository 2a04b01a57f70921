"""The candidates of one stack of matrices: a sample is encoded with every codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

from ders_core.checkpoint import ExpertGroup, OtherTensor
from ders_core.codecs import Codec, Keep
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.group import BaseForm, GroupCodec
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition, without_base
from ders_core.decompose.distortion import compare
from ders_core.errors import CodecError
from ders_core.later import torch
from ders_core.pipeline.encoder import Encoder, store_bases
from ders_core.pipeline.knowledge import Knowledge, Losses
from ders_core.pipeline.plan import PIECE
from ders_core.pipeline.sampling import Rows, SampledMatrix, encoded_sample, foretold_bytes
from ders_core.recipe import Recipe
from ders_core.tune.scores import Candidate

SAMPLE = 1 << 18
"""Values of a stack that are encoded with each codec, about."""

MOST_EXPERTS = 16
"""Experts of a group among whom a sample is shared out, at most. They are not alike: a quarter of
them told the bytes of a group within a tenth."""

WHOLE_EXPERTS = 2
"""Experts that are encoded whole, with codecs that do not act on rows."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Sampled:
    """rows: which are encoded. decomposition: of these. weights: of the chosen matrices, in storage
    dtype. known: of these rows."""

    rows: Rows
    decomposition: Decomposition
    weights: dict[int, torch.Tensor]
    known: Knowledge

    @classmethod
    def of(cls, rows: Rows, decomposition: Decomposition, known: Knowledge) -> _Sampled:
        weights = {number: decomposition.weight(number) for number in rows.chosen}
        return cls(rows, decomposition, weights, known.of_rows(rows.pieces, rows.share))

    def encoded(self, recipe: Recipe, codec: Codec) -> _Encoded:
        matrices = self._matrices(recipe, codec)
        if self.rows.share == 1 or not codec.ragged or len(self.rows.pieces) < 2:
            return _Encoded(self.rows, matrices, 0.0)
        halves = sum(half._matrices(recipe, codec)[0].ragged for half in self._halves)
        first = matrices[0].ragged
        return _Encoded(self.rows, matrices, float(min(max(halves - first, 0), first)))

    def _matrices(self, recipe: Recipe, codec: Codec) -> list[SampledMatrix]:
        same = GroupCodec.same(codec, self.decomposition.group.shape[0])
        encoder = Encoder.of(recipe, same, None, self.known)
        read = self.weights.__getitem__
        return encoded_sample(encoder, self.decomposition, self.rows.chosen, read)[1]

    @cached_property
    def _halves(self) -> tuple[_Sampled, _Sampled]:
        """Every other piece of the first matrix, and the rest of it."""
        return self._half(0), self._half(1)

    def _half(self, first: int) -> _Sampled:
        at, places = 0, list[slice]()
        for piece in self.rows.pieces:
            places.append(slice(at, at + piece.stop - piece.start))
            at = places[-1].stop
        some = places[first::2]
        group = self.decomposition.group.of_rows(some)
        base = torch.cat([self.decomposition.base[piece] for piece in some])
        share = sum(piece.stop - piece.start for piece in some) / at
        rows = replace(self.rows, pieces=some, chosen=self.rows.chosen[:1])
        known = self.known.of_rows(some, share)
        weights = {
            number: torch.cat([self.weights[number][piece] for piece in some])
            for number in rows.chosen
        }
        return _Sampled(rows, replace(self.decomposition, group=group, base=base), weights, known)


@dataclass(frozen=True)
class _Encoded:
    """matrices: of `rows`, in one codec. table: bytes of parts with lengths of their own that a
    matrix takes however many rows it has: what two halves of it take more than the whole."""

    rows: Rows
    matrices: list[SampledMatrix]
    table: float

    def ragged(self, some: Sequence[SampledMatrix]) -> float:
        """What these matrices take of all their rows."""
        return sum(self.table + (each.ragged - self.table) / self.rows.share for each in some)


@dataclass(frozen=True)
class GroupScorer:
    """group: of experts, against the recipe's base. known: of all its rows. per_expert: whether
    experts are told apart; then all are encoded."""

    group: ExpertGroup
    recipe: Recipe
    known: Knowledge
    context: BaseContext
    per_expert: bool

    def deltas(self, codecs: Sequence[Codec]) -> list[tuple[Candidate, ...]]:
        """The candidates of each unit of deltas: the experts, or the group."""
        count, out, width = self.group.shape
        units: list[list[Candidate]] = [[] for _ in range(count if self.per_expert else 1)]
        experts = 1 if self.per_expert else count
        for codec, encoded in _each(codecs, self._encoded):
            matrices = encoded.matrices
            shares = [[m] for m in matrices] if self.per_expert else [matrices]
            energy = sum(matrix.losses.energy for matrix in matrices)
            factor = _Factor.of(encoded.rows, self.known, per_expert=self.per_expert)
            for unit, share in zip(units, shares, strict=True):
                ragged = encoded.ragged(share) * experts / len(share)
                same = GroupCodec.same(codec, experts)
                nbytes = foretold_bytes(same, (out, width), self.group.dtype, ragged)
                if isinstance(codec, Keep):
                    nbytes = self.group.nbytes // count * experts
                unit.append(_candidate(codec, nbytes, share, energy, factor))
        return [tuple(unit) for unit in units]

    def base(self, codecs: Sequence[Codec]) -> tuple[Candidate, ...]:
        """The candidates of the group's base, whose errors all experts share."""

        def coded(codec: Codec) -> Candidate:
            return self._coded_base(codec)

        return tuple(candidate for _, candidate in _each(codecs, coded))

    def _coded_base(self, codec: Codec) -> Candidate:
        sampled, shape = self._rows, (self.group.shape[1], self.group.shape[2])
        form, decomposition = BaseForm(None, codec), sampled.decomposition
        stored = store_bases(decomposition, form, sampled.known, self.recipe.seed, is_shared=True)
        ragged = stored.ragged_bytes / sampled.rows.share
        nbytes = foretold_bytes(GroupCodec.same(codec, 1), shape, self.group.dtype, ragged)
        before, after = decomposition.base, stored.decomposition.base
        squares, output = compare(after, before, torch.zeros_like(before)), 0.0
        inputs = sampled.known.inputs
        if inputs is not None and self._energy:
            error = after.float() - before.float()
            output = len(sampled.weights) * inputs.output_squared(error) / self._energy
        share = sampled.rows.share
        return Candidate(
            codec,
            nbytes,
            codec.exact,
            (stored.cost or 0.0) / share,
            output,
            (stored.router_noise or 0.0) / share,
            1.0,
            squares.relative[1],
        )

    def _encoded(self, codec: Codec) -> _Encoded:
        sampled = self._rows if codec.acts_by_rows else self._whole
        return sampled.encoded(self.recipe, codec)

    @cached_property
    def _rows(self) -> _Sampled:
        count = self.group.shape[0]
        most = count if self.per_expert else min(count, MOST_EXPERTS)
        return self._of(Rows.of_some(self.group, SAMPLE // most, most))

    @cached_property
    def _whole(self) -> _Sampled:
        count, out, width = self.group.shape
        return self._of(
            Rows.of_some(self.group, out * width, count if self.per_expert else WHOLE_EXPERTS)
        )

    def _of(self, rows: Rows) -> _Sampled:
        part = self.group.of_rows(rows.pieces)
        ((_, decomposition),) = self.recipe.base.decompositions(part, self.context)
        return _Sampled.of(rows, decomposition, self.known)

    @cached_property
    def _energy(self) -> float:
        """E‖Wx‖² of the rows of the chosen matrices."""
        inputs = self._rows.known.inputs
        if inputs is None:
            return 0.0
        return sum(inputs.output_squared(weight) for weight in self._rows.weights.values())


def tensor_candidates(
    tensor: OtherTensor,
    recipe: Recipe,
    known: Callable[[OtherTensor], Knowledge],
    codecs: Sequence[Codec],
) -> tuple[Candidate, ...]:
    """Of a tensor outside the experts. known: of it as it is cut for a codec."""
    stack = tensor.cut(PIECE)
    pieces, out, width = stack.shape
    sample = SAMPLE // min(pieces, MOST_EXPERTS)
    rows = Rows.of_some(stack, sample, MOST_EXPERTS)
    decomposition = without_base(stack.of_rows(rows.pieces), "cpu")
    sampled = _Sampled.of(rows, decomposition, known(stack))
    factor = _Factor.of(rows, sampled.known, per_expert=False)
    found = []
    by_rows = [codec for codec in codecs if codec.acts_by_rows]
    for codec, encoded in _each(by_rows, partial(sampled.encoded, recipe)):
        matrices = encoded.matrices
        ragged = encoded.ragged(matrices) * pieces / len(matrices)
        same = GroupCodec.same(codec, pieces)
        nbytes = foretold_bytes(same, (out, width), tensor.dtype, ragged)
        if isinstance(codec, Keep):
            nbytes = tensor.nbytes
        found.append(replace(_candidate(codec, nbytes, matrices, 0.0, factor), gain=1.0))
    return tuple(found)


@dataclass(frozen=True)
class _Factor:
    """By what a sample's noise and router noise are multiplied for the whole."""

    noise: float
    router: float

    @classmethod
    def of(cls, rows: Rows, known: Knowledge, *, per_expert: bool) -> _Factor:
        """Of one matrix, or of all. Those that are not in the sample lose as much as those that
        are, by what their errors cost."""
        if per_expert:
            return cls(1 / rows.share, 1 / rows.share)
        noise, router = (
            _costs_of_all(curvatures, rows.chosen) / rows.share
            for curvatures in (known.charged or known.curvatures, known.routers)
        )
        return cls(noise, router)


def _costs_of_all(curvatures: Sequence[Curvature] | None, chosen: Sequence[int]) -> float:
    """Σ C of all matrices as a multiple of that of the chosen ones."""
    if curvatures is None:
        return 1.0
    some = sum(curvatures[number].total for number in chosen)
    return sum(each.total for each in curvatures) / some if some else 1.0


def _candidate(
    codec: Codec,
    nbytes: int,
    matrices: Sequence[SampledMatrix],
    energy: float,
    factor: _Factor,
) -> Candidate:
    """energy: E‖Wx‖² of all matrices that were encoded, these among them."""
    losses = sum((matrix.losses for matrix in matrices), Losses())
    return Candidate(
        codec,
        nbytes,
        codec.exact,
        losses.noise_cost * factor.noise,
        losses.output / energy if energy else 0.0,
        losses.router_noise * factor.router,
        losses.effective_gain,
        losses.squares.relative[1],
    )


def _each(codecs: Sequence[Codec], encoded: Callable[[Codec], T]) -> Iterator[tuple[Codec, T]]:
    """Every codec with what it gives, but for those whose steps are too fine for the values."""
    for codec in codecs:
        try:
            result = encoded(codec)
        except CodecError:
            continue
        yield codec, result
