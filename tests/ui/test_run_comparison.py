"""Selected runs side by side: errors over the layers, and what parts their recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest
from support.ended_jobs import add_ended
from support.stored_results import ENTRY, MEASURED, ONE_TEXT, PARAMETERS, QUALITY, REPORT, RUN
from support.studio_pages import on, words

from ders_core import figures
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.schema import transaction
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.quality import WEIGHT_ERROR
from ders_core.ui import session
from ders_core.ui.recipe_difference import offered_recipes
from ders_core.ui.run_comparison import layer_errors, lossless, recipe_difference, text_kls
from ders_core.ui.runs import ended, names


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
    (line,) = figures.errors_over_depth(errors, names([job])).data
    assert list(line.x) == [0]
    assert list(line.y) == pytest.approx([0.02])


def test_each_text_has_the_kl_of_each_run_with_its_interval(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    other = {"name": "code", "kl": 0.0, "kl_low": None, "kl_high": None}
    for _ in range(3):
        add_ended(store, "run")
    jobs = [
        replace(job, result=RUN | {"quality": quality})
        for job, quality in zip(
            store.list(kind="run"),
            (QUALITY, QUALITY | {"domains": [MEASURED | other]}, ONE_TEXT),
            strict=True,
        )
    ]
    table = text_kls(jobs)
    one, exact, _ = names(jobs)
    assert [tuple(row)[:3] for row in table.itertuples(index=False)] == [
        (one, "code", 0.4),
        (one, "prose", 0.1),
        (exact, "code", 0.0),
    ]
    order = names(jobs)
    (measured,) = figures.kl_on_texts(table, order).data
    assert (list(measured.x), list(measured.y)) == (["code", "prose"], [0.4, 0.1])
    assert list(measured.error_y.array) == pytest.approx([0.05, 0.05])
    assert list(measured.error_y.arrayminus) == pytest.approx([0.05, 0.05])
    assert lossless(table) == [exact]
    assert text_kls(jobs[2:]).empty


def test_a_run_looks_the_same_in_both_plots_and_as_no_other() -> None:
    """Also where another run before it is missing in one of them."""
    order = [f"run {number}" for number in range(20)]
    texts = pd.DataFrame({"run": order, "text": "code", "kl": 0.1, "kl_low": 0.1, "kl_high": 0.1})
    errors = pd.DataFrame(
        {"run": order, "layer": 0, "projection": "up", WEIGHT_ERROR.key: 0.1}
    ).drop([0, 9])
    dots, lines = (
        figures.kl_on_texts(texts, order).data,
        figures.errors_over_depth(errors, order).data,
    )
    looks = {each.name: (each.marker.color, each.marker.symbol) for each in dots}
    assert len(set(looks.values())) == len(order)
    assert len(lines) == len(order) - 2
    for line in lines:
        assert (line.line.color, line.marker.symbol) == looks[line.name]


@pytest.mark.parametrize(("kls", "plotted"), [((0.0, 0.0), False), ((0.0, 0.1), True)])
def test_what_loses_nothing_is_said_and_not_plotted(
    app: AppTest, workspace: Workspace, kls: tuple[float, float], plotted: bool
) -> None:
    store = JobStore(workspace.store_path)
    for kl in kls:
        add_ended(store, "run")
        domain = MEASURED | {"name": "code", "kl": kl}
        result = json.dumps(RUN | {"quality": QUALITY | {"domains": [domain]}})
        with transaction(store.path) as db:
            db.execute("UPDATE jobs SET result = ? WHERE id = (SELECT MAX(id) FROM jobs)", [result])

    def page() -> None:
        from ders_core.ui import session
        from ders_core.ui.run_comparison import run_comparison

        run_comparison(session.job_store().list(kind="run"))

    shown = AppTest.from_function(page).run()
    assert not shown.exception
    charts = [chart.proto.id for chart in shown.get("plotly_chart")]
    assert any("run_texts" in chart for chart in charts) == plotted
    assert any("run_errors" in chart for chart in charts)
    (caption,) = (each.value for each in shown.caption)
    assert ("run (2)" in caption) != plotted
    assert "run (1)" in caption


def test_runs_of_one_title_are_told_apart(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    for _ in range(3):
        add_ended(store, "run")
    jobs = store.list(kind="run")
    store.describe(jobs[0].id, "another")
    assert names(store.list(kind="run")) == [
        "another",
        f"run ({jobs[1].id})",
        f"run ({jobs[2].id})",
    ]


def test_the_difference_offers_each_of_them(workspace: Workspace, mixtral_dir: Path) -> None:
    store, source = session.job_store(), open_checkpoint(mixtral_dir)
    for bits in (1, 2):
        add_ended(store, "run", checkpoint=str(source.path), recipe=f"bits: {bits}")
    found = offered_recipes(source, {})
    assert [found[f"run: run ({number})"]() for number in (1, 2)] == ["bits: 1", "bits: 2"]


def test_runs_of_which_all_groups_have_no_base_are_known_as_plain(tmp_path: Path) -> None:
    """What codes nothing is not: it is no quantization."""
    store = JobStore(tmp_path / "jobs.sqlite")
    add_ended(store, "run")
    (job,) = store.list(kind="run")
    text = "name: x\nbase: none\nrules: [{codec: quantized, bits: 4}]"
    spec = job.spec | {"recipe": text}
    entries = {"none": ENTRY | {"base": "none"}, "mean": ENTRY | {"base": "mean"}}
    kept = {"codec": "keep", "gain": 1.0}
    for bases, plain in (
        ([entries["none"]], True),
        ([entries["none"], entries["mean"] | kept], True),
        ([entries["none"], entries["mean"]], False),
        ([entries["none"] | kept], False),
        ([], False),
    ):
        result = RUN | {"report": REPORT | {"entries": bases}}
        (row,) = ended([replace(job, spec=spec, result=result)]).to_dict("records")
        assert row["plain"] is plain


@pytest.mark.parametrize(
    ("recipe", "plain"),
    [
        ("base: none\nrules: [{codec: quantized, bits: 4}]", True),
        ("base: none\nrules: [{codec: entropy, bits: 2}, {codec: keep, layers: 0}]", True),
        ("base: none\nrules: [{codec: lossless}]", False),
        ("base: none\nrules: [{codec: quantized, bits: 4}, {codec: lowrank, rank: 2}]", False),
        ("base: none\nrules: [{codec: sparse, drop_rate: 0.5}]", False),
        ("base: auto\nrules: [{codec: quantized, bits: 4}]", False),
        ("rules: [{codec: of another version}]", False),
    ],
)
def test_only_codecs_that_quantize_make_a_run_plain(
    tmp_path: Path, recipe: str, plain: bool
) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    add_ended(store, "run", recipe=f"name: x\n{recipe}")
    result = RUN | {"report": REPORT | {"entries": [ENTRY | {"base": "none"}]}}
    (row,) = ended([replace(job, result=result) for job in store.list()]).to_dict("records")
    assert row["plain"] is plain


def test_runs_of_several_checkpoints_are_said_to_be_so(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    store = JobStore(workspace.store_path)
    add_ended(store, "run", checkpoint="/models/first")
    assert "checkpoints:" not in words(on(app.run(), "runs"))
    add_ended(store, "run", checkpoint="/models/*second*")
    on(app, "runs")
    assert "Runs of 2 checkpoints: models / \\*second\\*, models / first." in words(app)


def test_checkpoints_of_one_title_are_told_by_their_paths(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """Those that only failed runs have are not counted."""
    store = JobStore(workspace.store_path)
    add_ended(store, "run", checkpoint="/one/models/moe")
    store.submit("run", PARAMETERS["run"] | {"checkpoint": "/failed/models/moe"})
    claim = Claims(store.path, "me").claim()
    assert claim is not None
    claim.fail("it does not open")
    assert "checkpoints:" not in words(on(app.run(), "runs"))
    add_ended(store, "run", checkpoint="/two/models/moe")
    on(app, "runs")
    assert "Runs of 2 checkpoints: /two/models/moe, /one/models/moe." in words(app)
