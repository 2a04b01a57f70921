"""Finished runs as tables: one row for each run, and one for each group of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from ders_core.codecs import Entropy, Keep, Quantized
from ders_core.decompose.bases.none import NoBase
from ders_core.errors import JobError, RecipeError
from ders_core.jobs import Job
from ders_core.jobs.kinds.run import RunResult
from ders_core.later import pd
from ders_core.pipeline.quality import (
    COMPARED,
    DELTA_ERROR,
    GAIN,
    KL,
    KL_HIGH,
    KL_LOW,
    KL_P95,
    KL_P99,
    NOISE,
    NOISE_COST,
    OUTPUT_ERROR,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    PREDICTED_KL,
    REFERENCE_PERPLEXITY,
    ROUNDING,
    ROUTING_AGREEMENT,
    TOP1_AGREEMENT,
    WEIGHT_ERROR,
)
from ders_core.pipeline.report import KEPT, ReportEntry
from ders_core.recipe import Recipe

LEADING = (KL.key, PREDICTED_KL.key, "ratio", "bytes_after")
COLUMNS = (*LEADING, *(figure.key for figure in COMPARED if figure.key not in LEADING))
"""What a run costs, then what it saves, then the rest."""

DOMAIN = "kl of "
"""What the column of a text's KL begins with; its name follows."""

TASK = "task "
"""What the column of a task's metric begins with; both follow."""

WRITTEN = ("tags", "note")
"""What a person wrote about a run."""

PLAIN = "plain"
"""Whether the weights themselves were quantized, as one would without this method."""

QUANTIZING = {Quantized.name, Entropy.name}
"""Codecs that round to a grid, and do no more."""

ROW = [
    *("id", "name", "state", *COLUMNS, KL_LOW.key, KL_HIGH.key, "device", *WRITTEN, "remark"),
    PLAIN,
]
"""Of a run that has ended."""

MEANS, MEAN = (GAIN, NOISE, WEIGHT_ERROR), "The mean over the groups that are replaced."
"""Figures of groups; what a row of a run shows of them."""

GROUP_COLUMNS = (
    *("layer", "projection", "codec", "base", "bytes_before", "bytes_after"),
    *(GAIN.key, NOISE.key, NOISE_COST.key, DELTA_ERROR.key, WEIGHT_ERROR.key, OUTPUT_ERROR.key),
    *(ROUNDING.key, "seconds", "remark"),
)
"""Of the groups of one run."""


def row(job: Job, result: RunResult) -> dict[str, Any]:
    """The figures of a finished run; None for what was not measured."""
    quality, outlook = result.quality, result.outlook
    entries = result.report.entries if result.report else ()
    replaced = [entry for entry in entries if entry.is_replaced]
    count = len(replaced) or 1
    return {
        "id": job.id,
        "name": job.title,
        "device": result.device,
        "bytes_after": result.bytes_after,
        "ratio": result.ratio,
        PERPLEXITY.key: quality.perplexity if quality else None,
        REFERENCE_PERPLEXITY.key: quality.reference_perplexity if quality else None,
        PERPLEXITY_CHANGE.key: quality.perplexity_change if quality else None,
        **{
            figure.key: getattr(quality, figure.key) if quality else None
            for figure in (KL, KL_LOW, KL_HIGH, KL_P95, KL_P99)
        },
        TOP1_AGREEMENT.key: quality.top1_agreement if quality else None,
        ROUTING_AGREEMENT.key: quality.routing_agreement if quality else None,
        PREDICTED_KL.key: outlook.predicted_kl,
        GAIN.key: outlook.gain,
        NOISE.key: outlook.noise,
        WEIGHT_ERROR.key: sum(entry.rel_error_weight for entry in replaced) / count,
        PLAIN: bool(replaced)
        and all(entry.base == NoBase.name for entry in replaced)
        and _quantizes_plainly(str(job.spec.get("recipe", ""))),
        **{f"{DOMAIN}{each.name}": each.kl for each in (quality.domains if quality else ())},
        **{f"{TASK}{each.label}": each.value for each in result.tasks},
    }


@lru_cache(maxsize=256)
def _quantizes_plainly(recipe_yaml: str) -> bool:
    """Whether a recipe asks for no base, and all codecs of its experts only quantize. `base: auto`
    asks for one, also where none pays. False for a recipe that this version cannot read."""
    try:
        recipe = Recipe.from_yaml(recipe_yaml)
    except RecipeError:
        return False
    names = {rule.codec.name for rule in recipe.rules}
    return isinstance(recipe.base, NoBase) and names <= {*QUANTIZING, Keep.name}


def finished(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each run whose result can be read, newest first."""
    results = [(job, readable(job)) for job in jobs]
    return pd.DataFrame([row(job, result) for job, result in results if result is not None])


def ended(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each run, in their order: figures of those that have some, why others have none,
    and whether a budget was missed. Texts that were measured apart have a column each, and so have
    metrics of tasks."""
    rows = []
    for job in jobs:
        result, remark = None, job.error
        try:
            result = RunResult.of(job)
            if result is not None and result.report is not None:
                remark = remark or result.report.missed or None
        except JobError as error:
            remark = str(error)
        figures = row(job, result) if result is not None else {"id": job.id, "name": job.title}
        written = {"tags": ", ".join(job.tags) or None, "note": job.note or None}
        rows.append(dict.fromkeys(ROW) | figures | written | {"state": job.state, "remark": remark})
    apart = dict.fromkeys(
        name for begin in (DOMAIN, TASK) for each in rows for name in each if name.startswith(begin)
    )
    return pd.DataFrame(rows, columns=[*ROW, *apart])


def readable(job: Job) -> RunResult | None:
    """The result; None before the run is done, and for one that another version wrote."""
    try:
        return RunResult.of(job)
    except JobError:
        return None


def names(jobs: Sequence[Job]) -> list[str]:
    """Titles; of several with one title, each with its number too."""
    titles = [job.title for job in jobs]
    return [
        title if titles.count(title) == 1 else f"{title} ({job.id})"
        for job, title in zip(jobs, titles, strict=True)
    ]


def groups(result: RunResult) -> pd.DataFrame:
    """The report of a run, one row for each group; figures times their scale."""
    entries = result.report.entries if result.report else ()
    rows = [asdict(entry) | {"base": _base(entry)} for entry in entries]
    for row, entry in zip(rows, entries, strict=True):
        if entry.rounding is not None:
            row[ROUNDING.key] = ROUNDING.scale * entry.rounding
    return pd.DataFrame(rows)


def others(result: RunResult) -> pd.DataFrame:
    """The tensors outside the experts that a run coded, one row for each kind and codec: tensors,
    bytes before and after, and the largest error."""
    entries = result.report.others if result.report else ()
    if not entries:
        return pd.DataFrame()
    table = pd.DataFrame([asdict(entry) for entry in entries])
    sums = table.groupby(["kind", "codec"], sort=False).agg(
        tensors=("name", "count"),
        bytes_before=("bytes_before", "sum"),
        bytes_after=("bytes_after", "sum"),
        **{WEIGHT_ERROR.key: ("rel_error_weight", "max")},
    )
    return sums.reset_index()


def _base(entry: ReportEntry) -> str:
    """The kind of base, and how it is coded."""
    return entry.base if entry.base_codec == KEPT else f"{entry.base}, {entry.base_codec}"
