"""What a recipe will do, foretold from a sample of rows before a run: bytes, gain, noise and KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.codecs.group import GroupCodec
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition
from ders_core.decompose.distortion import Squares
from ders_core.files.inputs import unchanged_inputs
from ders_core.later import torch
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.knowledge import Knowledge, Losses, encode_expert
from ders_core.pipeline.plan import Plan, PlanEntry
from ders_core.pipeline.predicted import GroupCost, predicted_kl, removal_costs
from ders_core.pipeline.report import Outlook
from ders_core.recipe import Recipe

SAMPLE = 1 << 17
"""Values of an expert that are encoded, about."""

BLOCK = 16
"""Rows that are read at once."""

KEPT = "none"
"""The base of a group that stays as it is."""

EXPERTS = 4
"""Experts of a group that are encoded, at most."""


@dataclass(frozen=True)
class ForecastEntry:
    """One group. bytes_after: foretold where `Plan` has an upper bound. The other figures are as of
    `ReportEntry`; None where a sample does not tell."""

    layer: int
    projection: str
    base: str
    bytes_after: int
    gain: float | None
    noise: float | None
    noise_cost: float | None
    rel_error_output: float | None = None
    router_noise: float | None = None

    @property
    def costs(self) -> GroupCost | None:
        """None where a sample does not tell."""
        if self.gain is None:
            return None
        return GroupCost(
            (self.layer, self.projection),
            self.base,
            self.gain,
            self.noise_cost,
            self.rel_error_output,
            self.router_noise,
        )


@dataclass(frozen=True)
class Forecast:
    """bytes_after: of weight files. predicted_kl: nats a token on text like the calibration's; None
    without gradients, and where a group is not told by a sample."""

    entries: tuple[ForecastEntry, ...]
    bytes_after: int
    predicted_kl: float | None

    @property
    def outlook(self) -> Outlook:
        replaced = [entry for entry in self.entries if entry.base != KEPT]
        return Outlook.of(self.predicted_kl, [(entry.gain, entry.noise) for entry in replaced])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@unchanged_inputs()
def forecast(plan: Plan, checkpoint: Checkpoint, *, progress: Progress = quiet) -> Forecast:
    """Encode a sample of each group's rows and experts as the recipe says, on the CPU.

    plan: of this checkpoint; its files were checked (`check_files`). A low rank is no matter of
    rows, and a base that is read from a file is not sampled: there gain and noise are None. Raises
    CheckpointError, also if a file is written meanwhile, and CodecError.
    """
    checkpoint.store.hold()
    recipe = plan.recipe
    calibration = Calibration.open(recipe.calibration) if recipe.calibration else None
    encoded = [entry.key for entry in plan.entries if not entry.codec.keeps]
    removal = removal_costs(calibration, encoded) if calibration else {}
    context = BaseContext("cpu", calibration.tokens_per_expert if calibration else None)
    meter = Meter(len(plan.entries), progress)
    entries = []
    for entry in plan.entries:
        group = checkpoint.group(*entry.key, recipe.extended)
        if entry.codec.keeps:
            entries.append(_kept(entry))
        elif recipe.base.files or not _can_be_sampled(entry.codec):
            entries.append(ForecastEntry(*entry.key, "", entry.bytes_after, None, None, None))
        else:
            known = Knowledge(
                calibration.moments(*entry.key) if calibration else None,
                calibration.curvatures(group) if calibration else None,
                removal.get(entry.key, ()),
                len(encoded),
                calibration.router_curvatures(group) if calibration else None,
            )
            with torch.inference_mode():
                entries.append(_sampled(entry, group, recipe, known, context))
        meter.advance(1, f"foretold layer {entry.layer}, {entry.projection}")
    saved = sum(e.bytes_after - f.bytes_after for e, f in zip(plan.entries, entries, strict=True))
    costs = [entry.costs for entry in entries if entry.noise or entry.gain != 1]
    told = [cost for cost in costs if cost is not None]
    kl = predicted_kl(calibration, told) if calibration and len(told) == len(costs) else None
    return Forecast(tuple(entries), plan.bytes_after - saved, kl)


def _kept(entry: PlanEntry) -> ForecastEntry:
    return ForecastEntry(*entry.key, KEPT, entry.bytes_after, 1.0, 0.0, 0.0)


def _can_be_sampled(codec: GroupCodec) -> bool:
    return all(each.acts_by_rows for each in codec.codecs)


@dataclass(frozen=True)
class _Sample:
    """A sample of a group against one base. loss: what a choice of bases makes small. output: as
    `ReportEntry.rel_error_output`. cost, router: as its `noise_cost` and `router_noise`, of the
    sample. ragged: bytes of parts whose length depends on the data."""

    base: str
    squares: Squares
    loss: float
    output: float | None
    cost: float
    router: float
    ragged: int


def _sampled(
    entry: PlanEntry, group: ExpertGroup, recipe: Recipe, known: Knowledge, context: BaseContext
) -> ForecastEntry:
    experts, out, width = group.shape
    pieces = _spread(out, max(SAMPLE // width, 1))
    share = sum(piece.stop - piece.start for piece in pieces) / out
    chosen = _chosen(experts)
    of_rows = known.of_rows(pieces, share)
    decompositions = recipe.base.decompositions(group.of_rows(pieces), context)
    samples = (
        _encoded(name, decomposition, entry.codec, recipe.seed, of_rows, chosen)
        for name, decomposition in decompositions
    )
    best = min(samples, key=lambda sample: sample.loss)
    whole = experts / len(chosen) / share
    most = entry.codec.ragged_bytes((out, width), group.dtype)
    return ForecastEntry(
        *entry.key,
        best.base,
        entry.bytes_after - most + min(round(best.ragged * whole), most),
        best.squares.gain,
        best.squares.noise,
        best.cost * whole if known.curvatures else None,
        best.output,
        best.router * whole if known.routers else None,
    )


def _encoded(
    base_name: str,
    decomposition: Decomposition,
    group_codec: GroupCodec,
    seed: int,
    known: Knowledge,
    experts: Sequence[int],
) -> _Sample:
    fitted = group_codec.fit(decomposition.deltas)
    losses, ragged = Losses(), 0
    for expert in experts:
        codec, base = fitted.expert(expert), decomposition.base_of(expert)
        weight = decomposition.weight(expert)
        context = known.context(decomposition.group, expert, seed)
        encoded = encode_expert(codec, weight, base, context, known.router(expert))
        losses += encoded.losses
        ragged += sum(encoded.parts[name].nbytes for name in codec.ragged)
    return _Sample(
        base_name,
        losses.squares,
        losses.squares.error if known.moments is None else losses.output,
        losses.output_error,
        losses.noise_cost,
        losses.router_noise,
        ragged,
    )


def _spread(out: int, count: int) -> list[slice]:
    """About `count` of `out` rows, in blocks spread evenly."""
    if count >= out:
        return [slice(0, out)]
    blocks = max(count // BLOCK, 1)
    length = min(max(count // blocks, 1), out // blocks)
    starts = (number * out // blocks for number in range(blocks))
    return [slice(start, start + length) for start in starts]


def _chosen(experts: int) -> list[int]:
    """Experts to encode, spread evenly."""
    count = min(experts, EXPERTS)
    return [number * experts // count for number in range(count)]
