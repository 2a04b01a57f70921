"""One group or tensor as a sample of its rows foretells it: its bytes, and what is lost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from ders_core.checkpoint import ExpertGroup, MatrixStack, OtherTensor
from ders_core.codecs import EncodeContext, Lossless
from ders_core.codecs.group import GroupCodec
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition, without_base
from ders_core.decompose.distortion import Squares
from ders_core.files.writer import Specs
from ders_core.pipeline.base_choice import bits_to_spare, is_doubtful, pays
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.encoder import Encoder
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import Knowledge, tensor_knowledge
from ders_core.pipeline.plan import OtherEntry, PlanEntry, stack_specs
from ders_core.pipeline.predicted import GroupCost, OtherCost, routers_behind
from ders_core.pipeline.report import KEPT
from ders_core.pipeline.sampling import LARGER, Extent, Rows, encoded_sample, packed_sample
from ders_core.pipeline.stored_bases import StoredBases, shared_costs
from ders_core.recipe import Recipe

BASELESS = "none"
"""The base of a group whose weights are coded without one, or that stays as it is."""


@dataclass(frozen=True)
class ForecastEntry:
    """One group. bytes_after: foretold where `Plan` has an upper bound. bytes_lossless: with the
    same base and the codec `lossless`; None if that was not asked, or nothing is lost. The other
    figures are as of `ReportEntry`; None where a sample does not tell."""

    layer: int
    projection: str
    codec: str
    base: str
    bytes_after: int
    gain: float | None
    noise: float | None
    noise_cost: float | None
    rel_error_output: float | None = None
    router_noise: float | None = None
    bytes_lossless: int | None = None
    effective_gain: float | None = None

    @property
    def is_replaced(self) -> bool:
        return self.codec != KEPT

    @property
    def is_baseless(self) -> bool:
        """Whether it is coded without a base, or kept."""
        return self.base == BASELESS

    @property
    def costs(self) -> GroupCost | None:
        """None where a sample does not tell."""
        if self.gain is None or self.effective_gain is None:
            return None
        return GroupCost(
            (self.layer, self.projection),
            self.base,
            self.effective_gain,
            self.noise_cost,
            self.rel_error_output,
            self.router_noise,
        )


@dataclass(frozen=True)
class OtherForecast:
    """A tensor outside the experts that is coded; as `ForecastEntry`."""

    name: str
    bytes_after: int
    rel_error_weight: float | None
    noise_cost: float | None
    router_noise: float | None
    before: int
    bytes_lossless: int | None = None

    @property
    def costs(self) -> OtherCost:
        return OtherCost(self.rel_error_weight, self.noise_cost, self.router_noise, self.before)


def foretell_tensor(
    entry: OtherEntry,
    stack: OtherTensor,
    recipe: Recipe,
    calibration: Calibration | None,
    extent: Extent,
    *,
    with_lossless: bool,
) -> OtherForecast:
    """What is foretold of a tensor outside the experts."""
    rows, judged = extent.rows(stack), extent.judged_rows(stack)
    before, codec = routers_behind(stack), GroupCodec.same(entry.codec, stack.shape[0])
    lossless = None
    if with_lossless and not entry.codec.lossless:
        lossless = _lossless_bytes(_alone(stack, rows), rows, entry.bytes_before)
    if not entry.codec.acts_by_rows:
        return OtherForecast(entry.name, entry.bytes_after, None, None, None, before, lossless)
    known = tensor_knowledge(stack, calibration)

    def encoder(rows: Rows) -> Encoder:
        return Encoder.of(recipe, codec, None, known.of_rows(rows.pieces, rows.share))

    told = None
    if judged is not None:
        told = _encoded(BASELESS, _alone(stack, judged), encoder(judged), judged.chosen)
    if told is not None and judged == rows:
        taken = told.ragged
    else:
        _, taken = packed_sample(encoder(rows), _alone(stack, rows), rows.chosen)
    most = codec.ragged_bytes(entry.matrix, stack.dtype)
    after = entry.bytes_after - most + min(round(taken * rows.whole), most)
    if told is None or judged is None:
        return OtherForecast(entry.name, after, None, None, None, before, lossless)
    return OtherForecast(
        entry.name,
        after,
        told.squares.relative[1],
        told.cost * judged.whole if known.curvatures else None,
        told.router * judged.whole if known.routers else None,
        before,
        lossless,
    )


def tensor_specs(entry: OtherEntry, stack: OtherTensor, told: OtherForecast) -> Specs:
    """The tensors of what was foretold."""
    codec = GroupCodec.same(entry.codec, stack.shape[0])
    most = codec.ragged_bytes(entry.matrix, stack.dtype)
    ragged = most - (entry.bytes_after - told.bytes_after)
    lengths = codec.lengths_within(entry.matrix, stack.dtype, ragged)
    return stack_specs(stack, codec, None, lengths)


def tensor_is_whole(entry: OtherEntry, stack: OtherTensor, extent: Extent) -> bool:
    """Whether bytes of the sample are those of the tensor."""
    return entry.codec.acts_by_rows and _is_whole(entry.codec.ragged, stack, extent)


def group_is_whole(entry: PlanEntry, group: ExpertGroup, recipe: Recipe, extent: Extent) -> bool:
    """Whether bytes of the sample are those of the group."""
    ragged = [part for codec in entry.codec.codecs for part in codec.ragged]
    of_base = entry.base.codec.ragged if entry.base is not None else ()
    is_sure = recipe.base.count(group.shape[0]).exact and not recipe.base.is_optional
    return is_sure and len(of_base) <= 1 and _is_whole(ragged, group, extent)


def _is_whole(ragged: Collection[str], stack: MatrixStack, extent: Extent) -> bool:
    """Whether all is encoded, and at most one part has the bytes that depend on the data."""
    return extent.rows(stack).is_all and len(ragged) <= 1


def foretell_kept(entry: PlanEntry) -> ForecastEntry:
    """A group that stays as it is."""
    return ForecastEntry(
        *entry.key, KEPT, BASELESS, entry.bytes_after, 1.0, 0.0, 0.0, effective_gain=1.0
    )


@dataclass(frozen=True)
class _Sample:
    """A sample of a group against one base. gain: the effective one. loss: what a choice of bases
    makes small. output: as `ReportEntry.rel_error_output`. cost, router: as its `noise_cost` and
    `router_noise`, of the sample's matrices. ragged: bytes of parts whose length depends on the
    data, likewise; stored: its bases."""

    base: str
    squares: Squares
    gain: float
    loss: float
    output: float | None
    cost: float
    router: float
    ragged: int
    stored: StoredBases


def foretell_group(
    entry: PlanEntry,
    group: ExpertGroup,
    recipe: Recipe,
    known: Knowledge,
    context: BaseContext,
    extent: Extent,
    *,
    with_lossless: bool,
) -> tuple[ForecastEntry, Specs]:
    """What is foretold of a group, and its tensors. Raises CheckpointError and CodecError."""
    rows, sampled = extent.rows(group), _SampledGroup(entry, group, recipe, known, context)
    judged = extent.judged_rows(group)
    if judged is None and recipe.base.is_optional:  # which base pays, losses alone tell
        judged = LARGER.judged_rows(group)
    best = None if judged is None else sampled.best(judged)
    if best is not None and judged == rows:
        stored, taken = best.stored, best.ragged
    else:
        chosen = best.base if best is not None and recipe.base.is_optional else None
        stored, taken = sampled.packed(rows, chosen)
    form, shape = stored.form, (group.shape[1], group.shape[2])
    planned = entry.bytes_after
    if form is None and entry.base is not None:
        planned -= sum(spec.nbytes for spec in entry.base.specs(shape, group.dtype).values())
    most = entry.codec.ragged_bytes(shape, group.dtype)
    fixed = sum(spec.nbytes for spec in entry.codec.specs(shape, group.dtype).values()) - most
    of_deltas = min(round(taken * rows.whole), most)
    after = planned - most + of_deltas
    form = None if form is None else entry.base
    if form is not None and form.is_coded:
        most = form.stacked.ragged_bytes(shape, group.dtype)
        of_bases = min(round(stored.ragged_bytes / rows.share), most)
        after += of_bases - most
        form = replace(form, lengths=form.stacked.lengths_within(shape, group.dtype, of_bases))
    lossless = None
    if with_lossless and not all(codec.lossless for codec in entry.codec.codecs):
        without_loss = _lossless_bytes(stored.decomposition, rows, entry.bytes_before)
        lossless = after - fixed - of_deltas + without_loss
    lengths = entry.codec.lengths_within(shape, group.dtype, of_deltas)
    specs = stack_specs(group, entry.codec, form, lengths)
    label = entry.codec.label
    if best is None or judged is None:
        told = ForecastEntry(*entry.key, label, "", after, None, None, None)
        return replace(told, bytes_lossless=lossless), specs
    shared = shared_costs(best.stored, known.of_rows(judged.pieces, judged.share))
    told = ForecastEntry(
        *entry.key,
        label,
        best.base,
        after,
        best.squares.gain,
        best.squares.noise,
        _whole(best.cost, shared.cost, judged) if known.curvatures else None,
        best.output,
        _whole(best.router, shared.router_noise, judged) if known.routers else None,
        lossless,
        best.gain,
    )
    return told, specs


@dataclass(frozen=True)
class _SampledGroup:
    """A group of which samples are encoded."""

    entry: PlanEntry
    group: ExpertGroup
    recipe: Recipe
    known: Knowledge
    context: BaseContext

    def best(self, rows: Rows) -> _Sample:
        """Some rows against the base that loses least, or without any, where that is better and the
        recipe leaves it open."""
        encoder = self._encoder(rows)
        samples = (
            _encoded(name, decomposition, encoder, rows.chosen)
            for name, decomposition in self._decompositions(rows)
        )
        best, form = min(samples, key=lambda sample: sample.loss), self.entry.base
        if form is None or not self.recipe.base.is_optional:
            return best
        least = bits_to_spare(self.group.shape, form, self.group.dtype)
        if is_doubtful(best.squares, least):
            alone, encoder = _alone(self.group, rows), self._encoder(rows, has_base=False)
            plain = _encoded(BASELESS, alone, encoder, rows.chosen)
            if not pays(math.sqrt(best.loss), math.sqrt(plain.loss), least):
                return plain
        return best

    def packed(self, rows: Rows, base: str | None) -> tuple[StoredBases, int]:
        """As `packed_sample`, of some rows. base: the kind that was chosen among several; None for
        the only one there is, which other rows may name otherwise."""
        for name, decomposition in self._decompositions(rows):
            if base in (None, name):
                return packed_sample(self._encoder(rows), decomposition, rows.chosen)
        encoder = self._encoder(rows, has_base=False)
        return packed_sample(encoder, _alone(self.group, rows), rows.chosen)

    def _decompositions(self, rows: Rows) -> Iterator[tuple[str, Decomposition]]:
        return self.recipe.base.decompositions(self.group.of_rows(rows.pieces), self.context)

    def _encoder(self, rows: Rows, *, has_base: bool = True) -> Encoder:
        known, form = self.known.of_rows(rows.pieces, rows.share), self.entry.base
        if not has_base:
            known, form = replace(known, shrinks=False), None
        return Encoder.of(self.recipe, self.entry.codec, form, known)


def _alone(stack: MatrixStack, rows: Rows) -> Decomposition:
    return without_base(stack.of_rows(rows.pieces), "cpu")


def _whole(of_matrices: float, of_bases: float | None, rows: Rows) -> float | None:
    """A cost of a sample's matrices and bases, of all rows and experts."""
    return None if of_bases is None else of_matrices * rows.whole + of_bases / rows.share


def _lossless_bytes(decomposition: Decomposition, rows: Rows, most: int) -> int:
    """Of all matrices of a stack, foretold from those of a sample. most: as they are stored."""
    codec, taken = Lossless(), 0
    for number in rows.chosen:
        weight = decomposition.weight(number)
        context = EncodeContext(weight.dtype, 0)
        taken += codec.pack(weight, decomposition.base_of(number), context)["stream"].nbytes
    return min(round(taken * rows.whole), most)


def _encoded(
    base_name: str, decomposition: Decomposition, encoder: Encoder, experts: Sequence[int]
) -> _Sample:
    stored, matrices = encoded_sample(encoder, decomposition, experts)
    losses, ragged = Losses(), 0
    for matrix in matrices:
        losses += matrix.losses
        ragged += matrix.ragged
    return _Sample(
        base_name,
        losses.own,
        losses.effective_gain,
        losses.squares.error if encoder.known.inputs is None else losses.output,
        losses.output_error,
        losses.noise_cost,
        losses.router_noise,
        ragged,
        stored,
    )
