"""What `ders eval` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ders_core.cli.console import print_json, print_table
from ders_core.pipeline.quality import (
    KL,
    KL_P95,
    KL_P99,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    ROUTING_AGREEMENT,
    TOKENS,
    TOP1_AGREEMENT,
    DomainQuality,
    Figure,
    Quality,
    evaluated_rows,
    kl_text,
)
from ders_core.pipeline.task_scores import TaskScore
from ders_core.units import visible

DOMAIN_COLUMNS = (
    KL,
    KL_P95,
    KL_P99,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    TOP1_AGREEMENT,
    ROUTING_AGREEMENT,
    TOKENS,
)
CONTEXT_SHOWN = 60
"""Characters before a token that fit into a line."""


def print_quality(quality: Quality) -> None:
    """All texts together, each alone, and the tokens that changed most."""
    print_table(["", ""], [list(row) for row in evaluated_rows(quality.to_dict())])
    _print_domains(quality)
    _print_worst(quality)


@contextmanager
def json_if_tasks_fail(quality: Quality | None) -> Iterator[None]:
    """Print what texts measured if the block fails or is interrupted, and nothing without it."""
    try:
        yield
    except BaseException:
        if quality is not None:
            print_json(quality.to_dict())
        raise


def print_tasks(scores: Sequence[TaskScore]) -> None:
    """A row for each metric of each task; nothing without tasks."""
    if scores:
        rows = [[score.task, score.metric, score.text, str(score.samples)] for score in scores]
        print_table(["task", "metric", "reached", "questions"], rows)


def _print_domains(quality: Quality) -> None:
    """A row for each text with a name; what was not measured has no column."""
    if not quality.domains:
        return
    known = [
        figure
        for figure in DOMAIN_COLUMNS
        if any(getattr(domain, figure.key) is not None for domain in quality.domains)
    ]
    print()
    print_table(
        ["text", *(figure.short for figure in known)],
        [[domain.name, *(_cell(domain, each) for each in known)] for domain in quality.domains],
    )


def _cell(domain: DomainQuality, figure: Figure) -> str:
    value = getattr(domain, figure.key)
    if value is None:
        return ""
    return kl_text(domain.model_dump()) if figure is KL else figure.text(value)


def _print_worst(quality: Quality) -> None:
    """The tokens with the largest KL, each after the text before it; line ends are escaped."""
    if not quality.worst:
        return
    print("\nthe tokens that changed most")
    named = any(worst.domain for worst in quality.worst)
    columns = ["KL", *(["text"] if named else []), "before", "came", "original said", "this says"]
    rows = []
    for worst in quality.worst:
        before = visible(worst.before)
        if len(before) > CONTEXT_SHOWN:
            before = f"…{before[-CONTEXT_SHOWN:]}"
        said = (repr(visible(each)) for each in (worst.came, worst.original, worst.model))
        rows.append([KL.text(worst.kl), *([worst.domain] if named else []), before, *said])
    print_table(columns, rows)
