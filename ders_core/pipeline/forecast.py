"""What a recipe will do, foretold from a sample of rows before a run: bytes, gain, noise and KL."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from ders_core.checkpoint import Checkpoint, ExpertGroup, MatrixStack, OtherTensor
from ders_core.codecs import EncodeContext, Lossless
from ders_core.codecs.group import BaseForm, GroupCodec
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.threads import one_thread
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition, without_base
from ders_core.decompose.distortion import Squares
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.writer import Specs
from ders_core.later import torch
from ders_core.pipeline.base_choice import bits_to_spare, is_doubtful, pays
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.encoder import Encoder
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import (
    Knowledge,
    group_knowledge,
    tensor_knowledge,
)
from ders_core.pipeline.plan import (
    Key,
    OtherEntry,
    Plan,
    PlanEntry,
    output_bytes,
    stack_of,
    stack_specs,
)
from ders_core.pipeline.predicted import (
    GroupCost,
    OtherCost,
    predicted_kl,
    removal_costs,
    routers_behind,
)
from ders_core.pipeline.report import KEPT, Outlook
from ders_core.pipeline.sampling import SAMPLE, Rows, encoded_sample
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


@dataclass(frozen=True)
class Forecast:
    """bytes_after: of weight files, headers included. predicted_kl: nats a token on text like the
    calibration's; None without gradients, and where a group is not told by a sample. exact: whether
    bytes_after is what will be written, as all whose length depends on the data was encoded."""

    entries: tuple[ForecastEntry, ...]
    bytes_after: int
    predicted_kl: float | None
    others: tuple[OtherForecast, ...] = ()
    exact: bool = False

    @property
    def outlook(self) -> Outlook:
        replaced = [entry for entry in self.entries if entry.is_replaced]
        return Outlook.of(self.predicted_kl, [(entry.gain, entry.noise) for entry in replaced])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@unchanged_inputs()
def forecast(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    progress: Progress = quiet,
    sample: int = SAMPLE,
    with_lossless: bool = False,
    whole: bool = False,
) -> Forecast:
    """Encode a sample of each group's rows and experts as the recipe says, on the CPU.

    plan: of this checkpoint; its files were checked (`check_files`). sample: values of a matrix to
    encode, about; tables weigh the more, the fewer they are. with_lossless: encode it by `lossless`
    too, where the recipe loses something. whole: encode all rows of a few experts where some do
    not tell of all, as of a low rank of a given rank, which takes as long as a run does for them.
    Without that, and where a base is read from a file, gain and noise are None. Raises
    CheckpointError, also if a file is written meanwhile, and CodecError.
    """
    checkpoint.store.hold()
    recipe = plan.recipe
    calibration = Calibration.open(recipe.calibration) if recipe.calibration else None
    encoded = [entry.key for entry in plan.entries if not entry.codec.keeps]
    removal = removal_costs(calibration, encoded) if calibration else {}
    context = BaseContext("cpu", calibration.tokens_per_expert if calibration else None)
    meter = Meter(len(plan.entries) + len(plan.others), progress)
    entries, foretold, exact = [], dict[Key, Specs](), True
    for entry in plan.entries:
        group = checkpoint.group(*entry.key, recipe.extended)
        if entry.codec.keeps:
            group_told = _kept(entry)
        elif recipe.base.files or not (entry.can_be_sampled or (whole and entry.codec.settled)):
            label = entry.codec.label
            group_told = ForecastEntry(*entry.key, label, "", entry.bytes_after, None, None, None)
            exact &= entry.exact
        else:
            known = group_knowledge(
                group,
                calibration,
                removal.get(entry.key, ()),
                len(encoded),
                recipe.base.is_stored,
            )
            with one_thread(), torch.inference_mode():  # sums as of `encode`
                group_told, foretold[entry.key] = _sampled(
                    entry, group, recipe, known, context, sample, with_lossless=with_lossless
                )
            exact &= entry.exact or _group_is_whole(entry, group, recipe, sample)
        entries.append(group_told)
        meter.advance(1, f"foretold layer {entry.layer}, {entry.projection}")
    others = []
    for other in plan.others:
        stack = cast(OtherTensor, stack_of(checkpoint, recipe, other.key))
        with one_thread(), torch.inference_mode():
            told_other = _other(
                other, stack, recipe, calibration, sample, with_lossless=with_lossless
            )
        others.append(told_other)
        foretold[other.key] = _other_specs(other, stack, told_other)
        exact &= other.exact or (
            other.codec.acts_by_rows and _is_whole(other.codec.ragged, stack, sample)
        )
        meter.advance(1, f"foretold {other.name}")
    costs = [entry.costs for entry in entries if entry.noise or entry.gain != 1]
    told = [cost for cost in costs if cost is not None]
    kl = None
    if calibration and len(told) == len(costs):
        kl = predicted_kl(calibration, told, [other.costs for other in others])
    after = output_bytes(checkpoint, plan, foretold)
    return Forecast(tuple(entries), after, kl, tuple(others), exact)


def _other(
    entry: OtherEntry,
    stack: OtherTensor,
    recipe: Recipe,
    calibration: Calibration | None,
    sample: int,
    *,
    with_lossless: bool,
) -> OtherForecast:
    before, rows = routers_behind(stack), Rows.of(stack, sample)
    decomposition = without_base(stack.of_rows(rows.pieces), "cpu")
    lossless = None
    if with_lossless and not entry.codec.lossless:
        lossless = _lossless_bytes(decomposition, rows, entry.bytes_before)
    if not entry.codec.acts_by_rows:
        return OtherForecast(entry.name, entry.bytes_after, None, None, None, before, lossless)
    codec = GroupCodec.same(entry.codec, stack.shape[0])
    known = tensor_knowledge(stack, calibration)
    known = known.of_rows(rows.pieces, rows.share)
    told = _encoded(BASELESS, decomposition, codec, None, recipe, known, rows.chosen)
    ragged = codec.ragged_bytes(entry.matrix, stack.dtype)
    return OtherForecast(
        entry.name,
        entry.bytes_after - ragged + min(round(told.ragged * rows.whole), ragged),
        told.squares.relative[1],
        told.cost * rows.whole if known.curvatures else None,
        told.router * rows.whole if known.routers else None,
        before,
        lossless,
    )


def _other_specs(entry: OtherEntry, stack: OtherTensor, told: OtherForecast) -> Specs:
    codec = GroupCodec.same(entry.codec, stack.shape[0])
    most = codec.ragged_bytes(entry.matrix, stack.dtype)
    ragged = most - (entry.bytes_after - told.bytes_after)
    lengths = codec.lengths_within(entry.matrix, stack.dtype, ragged)
    return stack_specs(stack, codec, None, lengths)


def _lossless_bytes(decomposition: Decomposition, rows: Rows, most: int) -> int:
    """Of all matrices of a stack, foretold from those of a sample. most: as they are stored."""
    codec, taken = Lossless(), 0
    for number in rows.chosen:
        weight = decomposition.weight(number)
        context = EncodeContext(weight.dtype, 0)
        taken += codec.pack(weight, decomposition.base_of(number), context)["stream"].nbytes
    return min(round(taken * rows.whole), most)


def _kept(entry: PlanEntry) -> ForecastEntry:
    return ForecastEntry(
        *entry.key, KEPT, BASELESS, entry.bytes_after, 1.0, 0.0, 0.0, effective_gain=1.0
    )


@dataclass(frozen=True)
class _Sample:
    """A sample of a group against one base. gain: the effective one. loss: what a choice of bases
    makes small. output: as `ReportEntry.rel_error_output`. cost, router: as its `noise_cost` and
    `router_noise`, of the sample's matrices; base_cost, base_router: of its bases, as of
    `StoredBases`. ragged, ragged_base: bytes of parts whose length depends on the data, likewise.
    stored: against the bases as they are stored."""

    base: str
    squares: Squares
    gain: float
    loss: float
    output: float | None
    cost: float
    router: float
    ragged: int
    ragged_base: int
    base_cost: float | None
    base_router: float | None
    stored: Decomposition


def _sampled(
    entry: PlanEntry,
    group: ExpertGroup,
    recipe: Recipe,
    known: Knowledge,
    context: BaseContext,
    sample: int,
    *,
    with_lossless: bool,
) -> tuple[ForecastEntry, Specs]:
    """What is foretold of a group, and its tensors."""
    rows = Rows.of(group, sample) if entry.can_be_sampled else Rows.all_of_some(group)
    form = entry.base
    of_rows = known.of_rows(rows.pieces, rows.share)
    decompositions = recipe.base.decompositions(group.of_rows(rows.pieces), context)
    samples = (
        _encoded(name, decomposition, entry.codec, form, recipe, of_rows, rows.chosen)
        for name, decomposition in decompositions
    )
    best, shape = min(samples, key=lambda sample: sample.loss), (group.shape[1], group.shape[2])
    planned = entry.bytes_after
    if form is not None and recipe.base.is_optional:
        least = bits_to_spare(group.shape, form, group.dtype)
        if is_doubtful(best.squares, least):
            alone, known_alone = (
                without_base(group.of_rows(rows.pieces), "cpu"),
                replace(of_rows, shrinks=False),
            )
            plain = _encoded(BASELESS, alone, entry.codec, None, recipe, known_alone, rows.chosen)
            if not pays(math.sqrt(best.loss), math.sqrt(plain.loss), least):
                planned -= sum(spec.nbytes for spec in form.specs(shape, group.dtype).values())
                best, form = plain, None
    most = entry.codec.ragged_bytes(shape, group.dtype)
    fixed = sum(spec.nbytes for spec in entry.codec.specs(shape, group.dtype).values()) - most
    of_deltas = min(round(best.ragged * rows.whole), most)
    after = planned - most + of_deltas
    if form is not None and form.is_coded:
        most = form.stacked.ragged_bytes(shape, group.dtype)
        of_bases = min(round(best.ragged_base / rows.share), most)
        after += of_bases - most
        form = replace(form, lengths=form.stacked.lengths_within(shape, group.dtype, of_bases))
    lossless = None
    if with_lossless and not all(codec.lossless for codec in entry.codec.codecs):
        taken = _lossless_bytes(best.stored, rows, entry.bytes_before)
        lossless = after - fixed - of_deltas + taken
    lengths = entry.codec.lengths_within(shape, group.dtype, of_deltas)
    told = ForecastEntry(
        *entry.key,
        entry.codec.label,
        best.base,
        after,
        best.squares.gain,
        best.squares.noise,
        _whole(best.cost, best.base_cost, rows) if known.curvatures else None,
        best.output,
        _whole(best.router, best.base_router, rows) if known.routers else None,
        lossless,
        best.gain,
    )
    return told, stack_specs(group, entry.codec, form, lengths)


def _group_is_whole(entry: PlanEntry, group: ExpertGroup, recipe: Recipe, sample: int) -> bool:
    """Whether bytes of the sample are those of the group."""
    ragged = [part for codec in entry.codec.codecs for part in codec.ragged]
    of_base = entry.base.codec.ragged if entry.base is not None else ()
    is_sure = recipe.base.count(group.shape[0]).exact and not recipe.base.is_optional
    return is_sure and len(of_base) <= 1 and _is_whole(ragged, group, sample)


def _is_whole(ragged: Collection[str], stack: MatrixStack, sample: int) -> bool:
    """Whether all is encoded, and at most one part has the bytes that depend on the data."""
    return Rows.of(stack, sample).is_all and len(ragged) <= 1


def _whole(of_matrices: float, of_bases: float | None, rows: Rows) -> float | None:
    """A cost of a sample's matrices and bases, of all rows and experts."""
    return None if of_bases is None else of_matrices * rows.whole + of_bases / rows.share


def _encoded(
    base_name: str,
    decomposition: Decomposition,
    group_codec: GroupCodec,
    form: BaseForm | None,
    recipe: Recipe,
    known: Knowledge,
    experts: Sequence[int],
) -> _Sample:
    encoder = Encoder.of(recipe, group_codec, form, known)
    stored, matrices = encoded_sample(encoder, decomposition, experts)
    losses, ragged = Losses(), 0
    for matrix in matrices:
        losses += matrix.losses
        ragged += matrix.ragged
    return _Sample(
        base_name,
        losses.own,
        losses.effective_gain,
        losses.squares.error if known.inputs is None else losses.output,
        losses.output_error,
        losses.noise_cost,
        losses.router_noise,
        ragged,
        stored.ragged_bytes,
        stored.cost,
        stored.router_noise,
        stored.decomposition,
    )
