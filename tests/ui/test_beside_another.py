"""Redundancy shows another analysed checkpoint beside the open one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened, words

from ders_core import figures
from ders_core.analysis import Analysis, analyze, of_group
from ders_core.jobs import JobStore, Workspace
from ders_core.packed.open import open_checkpoint
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
