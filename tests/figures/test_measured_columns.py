"""Columns of tables on pages that stand alone."""

from __future__ import annotations

from ders_core.figures.measured import UNKNOWN, column
from ders_core.pipeline.quality import KL, PERPLEXITY, PERPLEXITY_CHANGE


def test_figures_of_a_column_have_as_many_decimals() -> None:
    assert column(KL, [0.000999, 0.00134, None]) == ["0.000999", "0.001340", UNKNOWN]
    assert column(PERPLEXITY, [18.5, 18.72]) == ["18.50", "18.72"]
    assert column(PERPLEXITY_CHANGE, [0.00577, -0.113, 0.0]) == [
        "+0.577 %",
        "-11.300 %",
        "+0.000 %",
    ]
    assert column(KL, [3.4e-5, 0.012, 2.1]) == ["0.0000340", "0.0120", "2.10"]
    assert column(KL, [None]) == [UNKNOWN]
