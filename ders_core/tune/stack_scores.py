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
from ders_core.decompose.decomposition import without_base
from ders_core.decompose.distortion import compare
from ders_core.errors import CodecError
from ders_core.later import torch
from ders_core.pipeline.encoder import store_bases
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import Knowledge
from ders_core.pipeline.plan import PIECE
from ders_core.pipeline.sampling import Rows, SampledMatrix, evenly, foretold_bytes
from ders_core.recipe import Recipe
from ders_core.tune.first_look import near_the_best
from ders_core.tune.sampled import Sampled, Tried
from ders_core.tune.scores import Candidate

SAMPLE = 1 << 18
"""Values of a stack that are encoded with each codec, about."""

MOST_EXPERTS = 16
"""Experts of a group among whom a sample is shared out, at most. They are not alike: a quarter of
them told the bytes of a group within a tenth."""

FEW_EXPERTS = 2
"""Experts on which all codecs are tried."""

WHOLE_EXPERTS = 2
"""Experts that are encoded whole, with codecs that do not act on rows."""

T = TypeVar("T")


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
        if not self.per_expert:
            return [self._of_group(codecs)]
        every = range(self.group.shape[0])
        tried = list(_each(codecs, lambda codec: self._sampled(codec).tried(codec, every)))
        return [tuple(self._candidate(*pair, [number]) for pair in tried) for number in every]

    def _of_group(self, codecs: Sequence[Codec]) -> tuple[Candidate, ...]:
        """All codecs are tried on few experts, and on the others those that may be in a recipe."""
        few = dict(_each(codecs, self._tried_on_few))
        candidates = [self._candidate(*pair) for pair in few.items()]
        near = near_the_best(candidates, sum(self.known.removal))
        pairs = list(zip(candidates, near, strict=True))

        def tried_on_all(codec: Codec) -> Tried:
            rest = self._sampled(codec).rows.chosen
            more = [number for number in rest if number not in few[codec].rows.chosen]
            if not more:
                return few[codec]
            return few[codec].with_more(self._sampled(codec).tried(codec, more))

        again = dict(_each([each.codec for each, is_near in pairs if is_near], tried_on_all))
        return tuple(
            self._candidate(each.codec, again[each.codec]) if is_near else each
            for each, is_near in pairs
            if not is_near or each.codec in again
        )

    def _tried_on_few(self, codec: Codec) -> Tried:
        sampled = self._sampled(codec)
        chosen = sampled.rows.chosen
        return sampled.tried(codec, [chosen[n] for n in evenly(len(chosen), FEW_EXPERTS)])

    def _candidate(
        self, codec: Codec, tried: Tried, some: Sequence[int] | None = None
    ) -> Candidate:
        """some: places of matrices among those that were tried, of one unit; None: all, of the
        group."""
        count, out, width = self.group.shape
        experts = count if some is None else len(some)
        matrices = tried.matrices if some is None else [tried.matrices[place] for place in some]
        energy = sum(matrix.losses.energy for matrix in tried.matrices)
        factor = _Factor.of(tried.rows, self.known, per_expert=self.per_expert)
        ragged = tried.ragged(matrices) * experts / len(matrices)
        same = GroupCodec.same(codec, experts)
        nbytes = foretold_bytes(same, (out, width), self.group.dtype, ragged)
        if isinstance(codec, Keep):
            nbytes = self.group.nbytes // count * experts
        return _candidate(codec, nbytes, matrices, energy, factor)

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

    def _sampled(self, codec: Codec) -> Sampled:
        return self._rows if codec.acts_by_rows else self._whole

    @cached_property
    def _rows(self) -> Sampled:
        count = self.group.shape[0]
        most = count if self.per_expert else min(count, MOST_EXPERTS)
        return self._of(Rows.of_some(self.group, SAMPLE // most, most))

    @cached_property
    def _whole(self) -> Sampled:
        count, out, width = self.group.shape
        return self._of(
            Rows.of_some(self.group, out * width, count if self.per_expert else WHOLE_EXPERTS)
        )

    def _of(self, rows: Rows) -> Sampled:
        part = self.group.of_rows(rows.pieces)
        ((_, decomposition),) = self.recipe.base.decompositions(part, self.context)
        return Sampled.of(rows, decomposition, self.known, self.recipe.seed)

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
    sampled = Sampled.of(rows, decomposition, known(stack), recipe.seed)
    factor = _Factor.of(rows, sampled.known, per_expert=False)
    candidates = []
    by_rows = [codec for codec in codecs if codec.acts_by_rows]
    for codec, tried in _each(by_rows, partial(sampled.tried, chosen=rows.chosen)):
        matrices = tried.matrices
        ragged = tried.ragged(matrices) * pieces / len(matrices)
        same = GroupCodec.same(codec, pieces)
        nbytes = foretold_bytes(same, (out, width), tensor.dtype, ragged)
        if isinstance(codec, Keep):
            nbytes = tensor.nbytes
        candidates.append(replace(_candidate(codec, nbytes, matrices, 0.0, factor), gain=1.0))
    return tuple(candidates)


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
