"""Numbers of a column have the same number of decimals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ders_core.pipeline.quality import KL, PERPLEXITY_CHANGE
from ders_core.ui.number_columns import figure_column, number_format
from ders_core.ui.recipe_columns import table_columns


@pytest.mark.parametrize(
    ("format", "values", "same"),
    [
        ("%.3g", [3.3, 3.25], "%.2f"),
        ("%.3g", [0.203, 2.36, np.nan], "%.3f"),
        ("%.3g", [5.8e-05, 0.000212, 0.0], "%.7f"),
        ("%.3g", [0.0074, 0.74], "%.5f"),
        ("%.3g", [0.00074, 0.74], "%.3g"),  # the largest does not get more than two more
        ("%.3g", [3.4e-5, 0.012, 2.1], "%.3g"),
        ("%.3g", [176.0, 200.0], "%.0f"),
        ("%.4g", [18.5, 18.72], "%.2f"),
        ("%+.3g %%", [-2.5, 11.0], "%+.2f %%"),
        ("%.3g", [None, np.nan, 0.0, np.inf], "%.3g"),
        ("%d", [1.0, 20.0], "%d"),
    ],
)
def test_a_column_has_the_decimals_of_its_smallest_number(
    format: str, values: list[float | None], same: str
) -> None:
    assert number_format(format, pd.Series(values, dtype=object)) == same


def test_sizes_after_a_codec_keep_the_digits_by_which_a_person_chooses() -> None:
    columns = table_columns(pd.Series([176.0, 200.0]))
    formats = [columns[name]["type_config"]["format"] for name in ("before", "after")]
    assert formats == ["%.0f", "%.3g"]


def test_a_figure_that_a_table_does_not_have_keeps_its_format() -> None:
    shown = pd.DataFrame({KL.key: [0.5, 0.25]})
    column: Any = figure_column(KL, shown)
    assert column["type_config"]["format"] == "%.3f"
    other: Any = figure_column(PERPLEXITY_CHANGE, shown, "A note.")
    assert other["type_config"]["format"] == PERPLEXITY_CHANGE.format
    assert other["help"].endswith("A note.")
