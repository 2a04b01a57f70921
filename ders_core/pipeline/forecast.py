"""What a recipe will do, foretold from a sample of rows before a run: bytes, gain, noise and KL."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

from ders_core.checkpoint import Checkpoint, OtherTensor
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.threads import one_thread
from ders_core.decompose.base import BaseContext
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.writer import Specs
from ders_core.later import torch
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.foretold import (
    ForecastEntry,
    OtherForecast,
    foretell_group,
    foretell_kept,
    foretell_tensor,
    group_is_whole,
    tensor_is_whole,
    tensor_specs,
)
from ders_core.pipeline.knowledge import group_knowledge
from ders_core.pipeline.plan import Key, Plan, output_bytes, stack_of
from ders_core.pipeline.predicted import predicted_kl, removal_costs
from ders_core.pipeline.report import Outlook
from ders_core.pipeline.sampling import USUAL, Extent


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
    extent: Extent = USUAL,
    with_lossless: bool = False,
    whole: bool = False,
) -> Forecast:
    """Encode a sample of each group's rows and experts as the recipe says, on the CPU.

    plan: of this checkpoint; its files were checked (`check_files`). with_lossless: encode it by
    `lossless` too, where the recipe loses something. whole: encode all rows of a few experts where
    some do not tell of all, as of a low rank of a given rank, which takes as long as a run does for
    them. Gain and noise are None of such groups without that, where a rank follows from `energy` or
    a base is read from a file, and of all groups where `extent` has no losses judged, unless
    they choose among bases. Raises CheckpointError, also if a file is written meanwhile, and
    CodecError.
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
            group_told = foretell_kept(entry)
        elif recipe.base.files or not (entry.can_be_sampled or (whole and entry.settled)):
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
            enough = extent if entry.can_be_sampled else extent.with_all_rows(group)
            with one_thread(), torch.inference_mode():  # sums as of `encode`
                group_told, foretold[entry.key] = foretell_group(
                    entry, group, recipe, known, context, enough, with_lossless=with_lossless
                )
            exact &= entry.exact or group_is_whole(entry, group, recipe, enough)
        entries.append(group_told)
        meter.advance(1, f"foretold layer {entry.layer}, {entry.projection}")
    others = []
    for other in plan.others:
        stack = cast(OtherTensor, stack_of(checkpoint, recipe, other.key))
        with one_thread(), torch.inference_mode():
            told_other = foretell_tensor(
                other, stack, recipe, calibration, extent, with_lossless=with_lossless
            )
        others.append(told_other)
        foretold[other.key] = tensor_specs(other, stack, told_other)
        exact &= other.exact or tensor_is_whole(other, stack, extent)
        meter.advance(1, f"foretold {other.name}")
    costs = [entry.costs for entry in entries if entry.noise or entry.gain != 1]
    told = [cost for cost in costs if cost is not None]
    kl = None
    if calibration and extent.judged and len(told) == len(costs):
        kl = predicted_kl(calibration, told, [other.costs for other in others])
    after = output_bytes(checkpoint, plan, foretold)
    return Forecast(tuple(entries), after, kl, tuple(others), exact)
