"""Measured figures as parts of a page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.figures.page import Page
from ders_core.pipeline.quality import KL, Figure, Quality, TextQuality, kl_text
from ders_core.units import for_column, formatted, visible

UNKNOWN = "–"


def cell(figure: Figure, value: float | None) -> str:
    """A figure in a table; a dash if it is not known."""
    return UNKNOWN if value is None else figure.text(value)


def column(figure: Figure, values: Sequence[float | None]) -> list[str]:
    """A figure in a column of a table, with as many decimals in each row; a dash where it is not
    known."""
    scaled = [None if value is None else figure.scale * value for value in values]
    shared = for_column(figure.format, [number for number in scaled if number is not None])
    return [UNKNOWN if number is None else formatted(shared, number) for number in scaled]


def kl_cell(quality: TextQuality | None) -> str:
    """The KL with its interval; a dash if it was not measured."""
    return UNKNOWN if quality is None or quality.kl is None else kl_text(quality.model_dump())


def worst_tokens(page: Page, quality: Quality) -> None:
    """A table of the tokens that changed most."""
    page.table(
        ["before", "came", "original expects", "this expects", "KL, nats"],
        [
            (
                f"… {visible(each.before)}",
                *map(visible, (each.came, each.original, each.model)),
                KL.text(each.kl),
            )
            for each in quality.worst
        ],
        "words",
    )
