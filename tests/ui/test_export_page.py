"""The Export page: what may be typed as a directory, and runs whose files were replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest
from support.ended_jobs import add_ended
from support.stored_results import PARAMETERS, RESULTS
from support.studio_pages import on, words

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.schema import transaction
from ders_core.jobs.which import PAGE
from ders_core.pipeline.card import CARD
from ders_core.ui.reads import MOST_CARD


@pytest.fixture
def run(workspace: Workspace, mixtral_dir: Path) -> int:
    """Number of a finished run in whose place an original lies."""
    number = JobStore(workspace.store_path).submit("run", PARAMETERS["run"], "small").id
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(RESULTS["run"][0] | {"packed": str(mixtral_dir)})
    return number


def test_a_result_that_was_replaced_by_an_original_is_told(app: AppTest, run: int) -> None:
    on(app.run(), "export")
    assert "not packed any more" in words(app)


@pytest.mark.parametrize(("free", "told"), [(1_230_000, "1.23 MB"), (45_600_000_000, "45.6 GB")])
def test_free_space_is_told_before_anything_is_written(
    app: AppTest,
    workspace: Workspace,
    run: int,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    told: str,
) -> None:
    asked: list[Path] = []

    def disk_usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    on(app.run(), "export")
    assert f"Free space for a directory that you give by name: {told}." in words(app)
    assert asked == [workspace.path]
    workspace.exports.mkdir()  # or a link to a larger disk
    app.run()
    assert asked[-1] == workspace.exports


def test_runs_of_other_versions_are_not_taken_for_none(app: AppTest, workspace: Workspace) -> None:
    store = JobStore(workspace.store_path)
    on(app.run(), "export")
    assert "Nothing to export yet" in words(app)
    for count, where, now in ((1, "", "Start a new one"), (PAGE, " of this page", "Turn the page")):
        for _ in range(count):
            add_ended(store, "run")
        with transaction(store.path) as db:
            db.execute("UPDATE jobs SET result = '{}'")
        on(app, "export")
        assert "Nothing to export yet" not in words(app)
        assert f"No run{where} can be exported: other versions wrote them. {now}." in words(app)


def test_a_directory_is_taken_as_it_was_typed(
    app: AppTest, workspace: Workspace, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workspace.path))
    on(app.run(), "export")
    field = f"out_packed_{run}"
    for typed, said in (("s3://bucket/x", "elsewhere"), ("~nobody-here/x", "nobody-here")):
        app.text_input(key=field).set_value(typed).run()
        app.button(key="export_packed").click().run()
        assert said in app.error[0].value
    whole = workspace.path / "whole"
    meant = {
        "~/at-home": workspace.path / "at-home",
        "named": workspace.exports / "named",
        str(whole): whole,
    }
    for typed in meant:
        app.text_input(key=field).set_value(typed).run()
        app.button(key="export_packed").click().run()
        assert not app.error
    jobs = JobStore(workspace.store_path).list(kind="export")
    assert {job.spec["out"] for job in jobs} == {str(path) for path in meant.values()}


def cards(app: AppTest) -> list[str]:
    return [code.value for code in app.code if code.language == "markdown"]


def test_a_long_model_card_is_cut_and_says_so(app: AppTest, workspace: Workspace) -> None:
    out = workspace.exports / "small"
    out.mkdir(parents=True)
    JobStore(workspace.store_path).submit("export", PARAMETERS["export"], "Export small")
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(RESULTS["export"][0] | {"out": str(out)})
    on(app.run(), "export")
    assert cards(app) == []  # the export has none any more
    whole = "x" * MOST_CARD
    (out / CARD).write_text(whole)
    assert cards(app.run()) == [whole]
    (out / CARD).write_text(whole + "y")
    (cut,) = cards(app.run())
    assert cut.startswith(f"{whole}...")
    assert "y" not in cut.removeprefix(whole).split("\n")[0]
    assert CARD in cut
