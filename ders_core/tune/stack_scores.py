"""The candidates of one stack of matrices: a sample is encoded with every codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from ders_core.checkpoint import ExpertGroup, OtherTensor
from ders_core.codecs import Codec, Keep
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.group import GroupCodec
from ders_core.codecs.tried_matrix import TriedDelta, WholeDelta
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition, without_base
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import Knowledge
from ders_core.pipeline.plan import PIECE
from ders_core.pipeline.sampling import Rows, SampledMatrix, evenly, foretold_bytes
from ders_core.recipe import Recipe
from ders_core.tune.first_look import near_the_best
from ders_core.tune.sampled import Sampled, Tried
from ders_core.tune.sampled_base import SampledBase
from ders_core.tune.scores import Candidate

SAMPLE = 1 << 18
"""Values of a stack that are encoded with each codec, about."""

MOST_EXPERTS = 16
"""Experts of a group among whom a sample is shared out, at most. They are not alike: a quarter of
them told the bytes of a group within a tenth."""

FEW_EXPERTS = 2
"""Experts on which all codecs are tried."""

WHOLE_EXPERTS = 2
"""Experts that are encoded whole, with codecs that do not act on rows; they are judged by as many
values of each as SAMPLE."""


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
        tried = self._tried(codecs, lambda sampled: every)
        return [
            tuple(self._candidate(*pair, [number]) for pair in tried.items()) for number in every
        ]

    def _of_group(self, codecs: Sequence[Codec]) -> tuple[Candidate, ...]:
        """All codecs are tried on few experts, and on the others those that may be in a recipe."""
        few = self._tried(codecs, _few)
        candidates = [self._candidate(*pair) for pair in few.items()]
        near = near_the_best(candidates, sum(self.known.removal))
        pairs = list(zip(candidates, near, strict=True))
        some = [each.codec for each, is_near in pairs if is_near]
        more = self._tried(some, _but_few)
        again = {codec: few[codec].with_more(more[codec]) for codec in some if codec in more}
        return tuple(
            self._candidate(each.codec, again[each.codec]) if is_near else each
            for each, is_near in pairs
            if not is_near or each.codec in again
        )

    def _tried(
        self, codecs: Sequence[Codec], some: Callable[[Sampled], Sequence[int]]
    ) -> dict[Codec, Tried]:
        """In their order. some: of the chosen matrices of a sample.

        Matrix after matrix, in all codecs: what they make of its own second moments is made once.
        """
        kinds = list[_OfAKind]()
        for by_rows in (True, False):
            alike = [codec for codec in codecs if codec.acts_by_rows == by_rows]
            if alike:
                sampled = self._rows if by_rows else self._whole
                kinds.append(_OfAKind.of(sampled, some(sampled), alike))
        for number in sorted({number for kind in kinds for number in kind.chosen}):
            for kind in kinds:
                kind.try_matrix(number)
        found = {codec: tried for kind in kinds for codec, tried in kind.found.items()}
        in_order = ((codec, found.get(codec)) for codec in codecs)
        return {codec: tried for codec, tried in in_order if tried is not None}

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
        return tuple(SampledBase.of(self._rows).candidates(codecs, self.group))

    @cached_property
    def _rows(self) -> Sampled:
        count = self.group.shape[0]
        most = count if self.per_expert else min(count, MOST_EXPERTS)
        return self._of(Rows.of_some(self.group, SAMPLE // most, most))

    @cached_property
    def _whole(self) -> Sampled:
        """Rows by which codecs are judged that act on whole matrices."""
        experts = self.group.shape[0] if self.per_expert else WHOLE_EXPERTS
        rows = Rows.of_some(self.group, SAMPLE, experts)
        if rows.share == 1:
            return self._of(rows)
        decomposition, seed = self._decomposed(self.group), self.recipe.seed

        @lru_cache(maxsize=1)
        def whole(number: int) -> WholeDelta:
            delta = TriedDelta(decomposition.delta(number))
            context = self.known.context(self.group, number, seed)
            return WholeDelta(delta, context, rows.pieces)

        return self._of(rows, whole)

    def _of(self, rows: Rows, whole: Callable[[int], WholeDelta] | None = None) -> Sampled:
        decomposition = self._decomposed(self.group.of_rows(rows.pieces))
        return Sampled.of(rows, decomposition, self.known, self.recipe.seed, whole)

    def _decomposed(self, group: ExpertGroup) -> Decomposition:
        ((_, decomposition),) = self.recipe.base.decompositions(group, self.context)
        return decomposition


@dataclass
class _OfAKind:
    """Codecs that are judged by the same rows. chosen: the matrices that they are tried on. found:
    what was tried so far, of the codecs that are left."""

    sampled: Sampled
    chosen: Sequence[int]
    found: Mapping[Codec, Tried | None]

    @classmethod
    def of(cls, sampled: Sampled, chosen: Sequence[int], codecs: Sequence[Codec]) -> _OfAKind:
        """Before any is tried; where none is chosen, all of that is known."""
        return cls(sampled, chosen, dict.fromkeys(codecs) if chosen else sampled.tried(codecs, []))

    def try_matrix(self, number: int) -> None:
        """Do so if it is chosen."""
        if number not in self.chosen:
            return
        tried = self.sampled.tried(list(self.found), [number])
        self.found = {codec: _together(self.found[codec], each) for codec, each in tried.items()}


def _together(before: Tried | None, tried: Tried) -> Tried:
    return tried if before is None else before.with_more(tried)


def _few(sampled: Sampled) -> list[int]:
    """The matrices on which all codecs are tried."""
    chosen = sampled.rows.chosen
    return [chosen[number] for number in evenly(len(chosen), FEW_EXPERTS)]


def _but_few(sampled: Sampled) -> list[int]:
    few = _few(sampled)
    return [number for number in sampled.rows.chosen if number not in few]


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
    for codec, tried in sampled.tried(by_rows, rows.chosen).items():
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
