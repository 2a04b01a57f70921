"""An original and its compressed forms on one page, on which to decide without the app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import yaml

from ders_core.analysis import Analysis
from ders_core.figures import maps
from ders_core.figures.curves import size_quality
from ders_core.figures.measured import UNKNOWN, cell, column, kl_cell, worst_tokens
from ders_core.figures.page import Page
from ders_core.files.address import name_of
from ders_core.later import pd
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.quality import (
    GAIN,
    KL,
    KL_HIGH,
    KL_LOW,
    KL_P99,
    NOISE,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    PREDICTED_KL,
    ROUTING_AGREEMENT,
    TOP1_AGREEMENT,
    WEIGHT_ERROR,
    Quality,
    TextQuality,
)
from ders_core.pipeline.report import KEPT, Outlook
from ders_core.pipeline.verify import GroupError
from ders_core.units import bytes_text, visible

STYLE = """
td:first-child,th:first-child{text-align:left}.sheet>table:not(.words) td{white-space:nowrap}
"""

MEASURED = (TOP1_AGREEMENT, ROUTING_AGREEMENT, PERPLEXITY, PERPLEXITY_CHANGE, KL_P99)


@dataclass(frozen=True)
class CandidateGroup:
    """A group of experts in a compressed form. rel_error_weight: ‖Ŵ−W‖/‖W‖. gain, noise: a and
    ‖E‖/‖Δ‖ of Δ̂ = aΔ + E; None where they are not known."""

    layer: int
    projection: str
    codec: str
    rel_error_weight: float
    gain: float | None
    noise: float | None


@dataclass(frozen=True)
class Candidate:
    """A compressed form that may be chosen. name: for people. recipe: YAML. nbytes: of its weight
    files. quality: None if it was not measured."""

    name: str
    recipe: str
    nbytes: int
    quality: Quality | None
    outlook: Outlook
    groups: Sequence[CandidateGroup]


def candidate(
    packed: PackedCheckpoint, errors: Sequence[GroupError], quality: Quality | None
) -> Candidate:
    """A packed checkpoint as it is on the disk. errors: of `verify` against its original."""
    codecs = {
        (group.layer, group.projection): group.group_codec().label
        for group in packed.manifest.groups
    }
    groups = [
        CandidateGroup(
            error.layer,
            error.projection,
            codecs.get((error.layer, error.projection), KEPT),
            error.rel_error_weight,
            error.gain,
            error.noise,
        )
        for error in errors
    ]
    replaced = [(one.gain, one.noise) for one in groups if one.codec != KEPT]
    recipe = yaml.safe_dump(dict(packed.manifest.recipe), sort_keys=False, allow_unicode=True)
    outlook = Outlook.of(None, replaced)
    return Candidate(name_of(packed.path), recipe, packed.bytes_total, quality, outlook, groups)


def decision_html(
    name: str, nbytes: int, candidates: Sequence[Candidate], analysis: Analysis | None = None
) -> str:
    """A page that stands alone: sizes and what they cost, what is alike in the original, and of
    each candidate its groups, the tokens that changed most and its recipe.

    nbytes: of the original's weight files. analysis: of the original, if there is one.
    """
    shown = visible(name)
    page = Page(f"{shown}: what to choose", f"{shown}: how small, and at what cost", STYLE)
    if analysis is not None:
        page.paragraph(analysis.verdict.sentence, "lead")
    page.paragraph(
        f"Original: {bytes_text(nbytes)} of weight files. KL: of the original's predictions "
        "against the compressed model's, mean over the tokens of a text, in nats; 0: the same. In "
        "brackets, where it lies with a probability of 95 %."
    )
    page.table(*_sizes(nbytes, candidates))
    measured = [one for one in candidates if one.quality is not None and one.quality.kl is not None]
    if measured:
        page.figure(_size_quality(nbytes, measured))
    texts = _texts(candidates)
    if texts:
        page.heading("Text by text")
        page.paragraph("KL on each text alone, nats a token.")
        page.table(["", *texts], [_text_row(one, texts) for one in candidates])
    if analysis is not None:
        page.heading("How alike the experts are")
        page.figure(maps.model_map(analysis))
        page.figure(maps.norm_ratio_over_depth(analysis))
    for one in candidates:
        _details(page, one)
    return page.text()


def _sizes(nbytes: int, candidates: Sequence[Candidate]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows; columns in which nothing is known are left out."""
    columns = ["", "size", "of original", KL.short, PREDICTED_KL.short]
    columns += [figure.short for figure in MEASURED]
    compared = [
        column(PREDICTED_KL, [one.outlook.predicted_kl for one in candidates]),
        *(
            column(figure, [getattr(one.quality, figure.key, None) for one in candidates])
            for figure in MEASURED
        ),
    ]
    rows = [
        (
            visible(one.name),
            bytes_text(one.nbytes),
            f"{100 * one.nbytes / nbytes:.1f} %",
            kl_cell(one.quality),
            *figures,
        )
        for one, figures in zip(candidates, zip(*compared, strict=True), strict=True)
    ]
    known = [
        number
        for number, column in enumerate(columns)
        if not column or any(row[number] != UNKNOWN for row in rows)
    ]
    return [columns[number] for number in known], [
        tuple(row[number] for number in known) for row in rows
    ]


def _size_quality(nbytes: int, measured: Sequence[Candidate]) -> go.Figure:
    rows = [
        {
            "name": one.name,
            "ratio": one.nbytes / nbytes,
            "bytes_after": one.nbytes,
            **{
                figure.key: getattr(one.quality, figure.key)
                for figure in (KL, KL_LOW, KL_HIGH, PERPLEXITY)
            },
        }
        for one in measured
    ]
    return size_quality(pd.DataFrame(rows))


def _texts(candidates: Sequence[Candidate]) -> list[str]:
    """The names of texts that were measured apart, each once."""
    names = [each.name for one in candidates if one.quality for each in one.quality.domains]
    return list(dict.fromkeys(names))


def _text_row(one: Candidate, texts: Sequence[str]) -> tuple[str, ...]:
    found: Mapping[str, TextQuality] = {
        each.name: each for each in (one.quality.domains if one.quality else ())
    }
    return (visible(one.name), *(kl_cell(found.get(name)) for name in texts))


def _details(page: Page, one: Candidate) -> None:
    """What is read of the one that is considered, folded."""
    page.heading(visible(one.name))
    if one.outlook.text:
        page.paragraph(f"{one.outlook.text[0].upper()}{one.outlook.text[1:]}.")
    if one.groups:
        columns = ["layer", "projection", "codec", GAIN.short, NOISE.short, WEIGHT_ERROR.short]
        with page.fold("Its groups"):
            page.table(columns, map(_group_row, one.groups))
    if one.quality is not None and one.quality.worst:
        with page.fold("The tokens that changed most"):
            worst_tokens(page, one.quality)
    page.folded("Its recipe", one.recipe)


def _group_row(group: CandidateGroup) -> tuple[str, ...]:
    return (
        str(group.layer),
        group.projection,
        group.codec,
        cell(GAIN, group.gain),
        cell(NOISE, group.noise),
        WEIGHT_ERROR.text(group.rel_error_weight),
    )
