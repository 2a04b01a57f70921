"""Selected runs side by side: errors over the layers, and what parts their recipes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support.ended_jobs import add_ended
from support.stored_results import ENTRY

from ders_core import figures
from ders_core.jobs import JobStore
from ders_core.pipeline.quality import WEIGHT_ERROR
from ders_core.ui.run_comparison import layer_errors, recipe_difference


def test_two_runs(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    for bits in (1, 2):
        add_ended(store, "run", recipe=f"rules:\n  - codec: quantized\n    bits: {bits}")
    second, first = store.list(kind="run")
    errors = layer_errors([first, second])
    assert errors["run"].nunique() == 2  # although they have one name
    assert errors["rel_error_weight"].tolist() == [ENTRY["rel_error_weight"]] * 2
    lines = recipe_difference(first, second).splitlines()
    assert lines[-2:] == ["-    bits: 1", "+    bits: 2"]
    assert recipe_difference(first, first) == ""
    assert layer_errors([]).empty


def test_a_line_has_the_mean_of_each_layer(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    add_ended(store, "run")
    (job,) = store.list(kind="run")
    rows = layer_errors([job])
    more = rows.assign(projection="down", **{WEIGHT_ERROR.key: 0.03})
    errors = pd.concat([rows, more])
    (line,) = figures.errors_over_depth(errors).data
    assert list(line.x) == [0]
    assert list(line.y) == pytest.approx([0.02])
