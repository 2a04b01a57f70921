"""Redundancy shows another analysed checkpoint beside the open one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from support.stored_results import RESULTS
from support.studio_pages import on, opened, words

from ders_core import figures
from ders_core.analysis import Analysis, analyze, of_group
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets
from ders_core.ui.place_title import place_title
from ders_core.units import number_text


def heat_maps(app: AppTest) -> list[dict[str, object]]:
    """The heat maps of the page, in their order."""
    traces = [json.loads(chart.proto.spec)["data"][0] for chart in app.get("plotly_chart")]
    return [trace for trace in traces if trace["type"] == "heatmap"]


def test_another_checkpoint_is_shown_beside_on_one_scale(
    app: AppTest,
    workspace: Workspace,
    mixtral_dir: Path,
    scratch_dir: Path,
    work: Callable[[], None],
) -> None:
    opened(app, scratch_dir)
    on(app, "redundancy").button(key="analyse").click().run()
    work()
    on(app, "redundancy")
    assert "Nothing else was analysed" in words(app)
    opened(on(app, "checkpoint"), mixtral_dir)
    checkpoint, scratch = open_checkpoint(mixtral_dir), open_checkpoint(scratch_dir)
    analyze(checkpoint).save(workspace.analysis_dir(checkpoint.identity))
    on(app, "redundancy")
    alone = len(heat_maps(app))
    assert app.selectbox(key="red_beside").options[0] == "nothing"
    app.selectbox(key="red_beside").set_value(str(scratch_dir)).run()
    assert not app.exception
    assert app.query_params["beside"] == str(scratch_dir)
    there = Analysis.load(workspace.analysis_dir(scratch.identity))
    layer, projection = open_checkpoint(mixtral_dir).groups()[0].key
    apart = float(of_group(there.groups, layer, projection)["mean_one_minus_cos"].iloc[0])
    assert f"there a mean 1 − cos of {number_text(apart)}" in words(app)
    maps = heat_maps(app)[alone:]
    assert len(maps) == 4
    assert len({(one["zmin"], one["zmax"]) for one in maps[::2]}) == 1
    assert len({(one["zmin"], one["zmax"]) for one in maps[1::2]}) == 1
    # What has changed since is not shown as if it had not.
    (workspace.analysis_dir(scratch.identity) / "meta.json").unlink()
    app.run()
    assert not app.exception
    assert "was changed since it was analysed" in words(app)


def test_two_packed_forms_are_shown_side_by_side(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """Their experts as they are given back: one bit and two make different ones."""
    store, analyses, places = JobStore(workspace.store_path), [], []
    for bits in (1, 2):
        packed = workspace.path / f"{bits}-bit"
        compress(mixtral_dir, packed, presets()[f"quantized-{bits}bit"])
        checkpoint = open_checkpoint(packed)
        analyses.append(analyze(checkpoint))
        analyses[-1].save(workspace.analysis_dir(checkpoint.identity))
        store.submit("analyze", {"checkpoint": str(packed)})
        claim = Claims(store.path, "me").claim()
        assert claim is not None
        claim.complete(RESULTS["analyze"][0])
        places.append(str(packed))
    on(opened(app, Path(places[0])), "redundancy")
    alone = len(heat_maps(app))
    app.selectbox(key="red_beside").set_value(places[1]).run()
    assert not app.exception
    maps = heat_maps(app)[alone:]
    for number, analysis in enumerate(analyses):
        apart = analysis.groups["mean_one_minus_cos"]
        shown = 10 ** values_of(maps[2 * number])
        assert sorted(shown[np.isfinite(shown)]) == pytest.approx(sorted(apart), rel=1e-4)
    assert not np.allclose(values_of(maps[0]), values_of(maps[2]), rtol=1e-3)
    for one, other in ((maps[0], maps[2]), (maps[1], maps[3])):
        assert (one["zmin"], one["zmax"]) == (other["zmin"], other["zmax"])


def values_of(trace: dict[str, Any]) -> np.ndarray:
    """The values of a heat map, as plotly sends them: as numbers, or as bytes."""
    z = trace["z"]
    if isinstance(z, dict):
        return np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]).astype(float)
    return np.array(z, dtype=float).reshape(-1)


def test_what_a_job_wrote_is_named_after_it(app: AppTest, workspace: Workspace) -> None:
    app.run()
    spec = {"checkpoint": "/models/8x7b", "recipe": presets()["quantized-1bit"].to_yaml()}
    job = JobStore(workspace.store_path).submit("run", spec, "one bit").id
    assert place_title(workspace.run_dir(job) / "packed") == "one bit / packed"
    assert place_title(workspace.run_dir(job + 1) / "packed") == f"{job + 1:05d} / packed"
    assert place_title("/models/8x7b") == "models / 8x7b"
    assert place_title("hf://owner/repo") == "hf://owner/repo"


def test_both_have_the_colours_of_one_range(mixtral_dir: Path, scratch_dir: Path) -> None:
    near, far = (analyze(open_checkpoint(path)) for path in (mixtral_dir, scratch_dir))
    for metric in ("one_minus_cos", "norm_ratio"):
        column = {"one_minus_cos": "mean_one_minus_cos"}.get(metric, metric)
        one, other = (
            figures.model_map(first, metric, second).data[0]
            for first, second in ((near, far), (far, near))
        )
        assert (one.zmin, one.zmax) == (other.zmin, other.zmax)
        least, most = near.groups[column].min(), far.groups[column].max()
        ends = (one.zmin, one.zmax) if metric == "norm_ratio" else (10**one.zmin, 10**one.zmax)
        assert ends == pytest.approx((least, most), rel=1e-6)
