"""The Recipe page warns near cliffs: those that are computed, measured, or known from the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest
from support.disk_forms import extended
from support.stored_results import RESULTS
from support.studio_pages import on, opened

from ders_core.analysis import analyze
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe
from ders_core.ui.cliff_warnings import low_gain, shared_expert
from ders_core.units import bytes_text


def test_little_of_the_deltas_is_warned_of() -> None:
    sentence = low_gain(pd.DataFrame({"gain": [0.4, None, 0.9, 0.5]}))
    assert "1 of 4 groups" in sentence
    assert "Make the codec keep more there" in sentence  # a higher drop rate keeps less
    assert low_gain(pd.DataFrame({"gain": [None, 0.5]})) == ""
    assert low_gain(pd.DataFrame({"gain": []})) == ""


def apply(app: AppTest, text: str) -> list[str]:
    """Make a recipe the current one; returns the warnings of the page."""
    area = next(area for area in app.text_area if area.label == "YAML")
    area.set_value(text)
    app.button(key="yaml_apply").click().run()
    assert not app.exception
    assert not app.error
    return [warning.value for warning in app.warning]


def test_the_page_warns_where_the_analysis_expects_little(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """Of Gaussian deltas, magnitude keeps 0.46 of the energy at a drop rate of 0.9, and 0.98 at
    0.3; a rescaled random drop keeps all."""
    source = open_checkpoint(mixtral_dir)
    analyze(source).save(workspace.analysis_dir(source.identity))
    on(opened(app, mixtral_dir), "recipe")
    magnitude = "{codec: sparse, method: magnitude, drop_rate: %s}"
    low = magnitude % 0.95
    (warning,) = apply(app, f"name: x\nrules: [{low}]\n")
    assert "Near a cliff: in 6 of 6 groups less than half" in warning
    some = magnitude % 0.95 + ", " + "{codec: quantized, bits: 4, projections: [gate, up]}"
    (warning,) = apply(app, f"name: x\nrules: [{some}]\n")
    assert "in 2 of 6 groups" in warning
    assert apply(app, f"name: x\nrules: [{magnitude % 0.3}]\n") == []
    assert apply(app, "name: x\nrules: [{codec: sparse, method: random, drop_rate: 0.95}]\n") == []


def series(
    workspace: Workspace, checkpoint: Path, *cliffs: dict[str, Any], of: int | None = None
) -> None:
    """A finished series of sizes that found these cliffs. of: bytes of the weight files then, if
    not as they are."""
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(checkpoint), "calibration": "/c.safetensors", "text": "/t.txt"}
    store.submit("series", spec)
    claim = Claims(store.path, "me").claim()
    assert claim is not None
    before = open_checkpoint(checkpoint).bytes_total if of is None else of
    claim.complete(RESULTS["series"][0] | {"cliffs": list(cliffs), "bytes_before": before})


TEXT = "name: x\nrules: [{codec: quantized, bits: 4}]\n"
CLIFF = {"small": 0, "large": 10**12, "kl_small": 0.4, "kl_large": 0.1, "rise": 3.5}


@pytest.mark.parametrize(
    ("small", "large", "where"), [(-1000, 1000, "Near"), (500, 1000, "Below"), (-1000, 0, None)]
)
def test_the_page_warns_of_the_nearest_cliff_that_a_series_measured(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, small: int, large: int, where: str | None
) -> None:
    """small, large: in bytes above what the recipe leaves."""
    nbytes = resolve(Recipe.from_yaml(TEXT), open_checkpoint(mixtral_dir)).bytes_after
    cliff = CLIFF | {"small": nbytes + small, "large": nbytes + large}
    further = CLIFF | {"small": nbytes + 1000, "kl_small": 0.1, "kl_large": 0.01}
    series(workspace, mixtral_dir.parent, CLIFF, of=1000)  # of another checkpoint
    series(workspace, mixtral_dir, CLIFF)  # an older one
    series(workspace, mixtral_dir, cliff, *([further] if where else []))
    on(opened(app, mixtral_dir), "recipe")
    warnings = apply(app, TEXT)
    assert len(warnings) == (where is not None)
    for warning in warnings:
        assert warning.startswith(f"{where} a cliff")
        assert "the KL falls from 0.400 to 0.100" in warning
        assert f"Stay at {bytes_text(nbytes + large)} or above" in warning
        assert f"leaves {bytes_text(nbytes)}" in warning


@pytest.mark.parametrize(("more", "warned"), [(0, 1), (1000, 0)])
def test_a_cliff_of_what_the_directory_held_before_is_not_told(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, more: int, warned: int
) -> None:
    """more: bytes that the weight files had then."""
    before = open_checkpoint(mixtral_dir).bytes_total + more
    series(workspace, mixtral_dir, CLIFF, of=before)
    on(opened(app, mixtral_dir), "recipe")
    assert len(apply(app, TEXT)) == warned


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        ("{codec: quantized, bits: 2}", 3),
        ("{codec: quantized, bits: 3, projections: [down]}", 1),
        ("{codec: quantized, bits: 4}", 0),
        ("{codec: sparse, method: random, drop_rate: 0.9}", 3),
        ("{codec: sparse, method: random, drop_rate: 0.8}", 0),
    ],
)
def test_the_page_warns_of_the_papers_cliff_of_the_shared_expert(
    app: AppTest, workspace: Workspace, rule: str, groups: int
) -> None:
    on(opened(app, extended(workspace.path / "shared")), "recipe")
    assert apply(app, f"name: x\nrules: [{rule}]\n") == []
    warnings = apply(app, f"name: x\nextended: true\nrules: [{rule}]\n")
    assert len(warnings) == bool(groups)
    for warning in warnings:
        assert f"in {groups} of 3 groups that have a shared expert" in warning


def test_only_layers_with_a_shared_expert_count(tmp_path: Path) -> None:
    groups = open_checkpoint(extended(tmp_path / "shared")).groups()
    rows = pd.DataFrame(
        [{"layer": group.layer, "projection": group.projection} for group in groups]
    )
    rows = rows.assign(codec="quantized", strength=2.0)
    beside = rows.assign(layer=1)
    without = [replace(group, block=replace(group.block, index=1), shared=None) for group in groups]
    sentence = shared_expert(pd.concat([rows, beside]), [*groups, *without])
    assert "in 3 of 3 groups that have a shared expert" in sentence
    assert shared_expert(beside, without) == ""
