"""The Playground: what is asked of which models, and what is shown of the replies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.ended_jobs import add_ended
from support.stored_results import REPLIES, RUN
from support.studio_pages import on, opened, words

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.kinds.ask import Ask, AskResult
from ders_core.jobs.schema import transaction
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets
from ders_core.ui.plain import answer_first
from ders_core.ui.playground.pair import DIRECTORIES


@pytest.fixture
def packed(workspace: Workspace, mixtral_dir: Path) -> Path:
    out = workspace.path / "packed"
    compress(mixtral_dir, out, presets()["quantized-1bit"])
    return out


@pytest.fixture
def store(workspace: Workspace) -> JobStore:
    return JobStore(workspace.store_path)


def asked(app: AppTest, prompt: str) -> AppTest:
    app.text_area(key="ask_prompt").set_value(prompt).run()
    return app.button(key="ask_start").click().run()


def end_with(workspace: Workspace, result: dict[str, object]) -> None:
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(result)


def test_two_directories_are_asked_in_the_worker(
    app: AppTest,
    mixtral_dir: Path,
    packed: Path,
    store: JobStore,
    work: Callable[[], None],
) -> None:
    on(opened(app, mixtral_dir), "playground")
    assert "Nothing was asked yet" in words(app)
    assert "No run has finished yet" in words(app)
    (start,) = app.get("page_link")
    assert (start.proto.label, start.proto.page) == ("Start a run", "runs")
    assert app.text_input(key="ask_original").value == str(mixtral_dir)
    asked(app, "The river runs")
    assert "packed checkpoint" in app.error[0].value
    app.text_input(key="ask_packed").set_value(f" {packed} ").run()
    app.number_input(key="ask_tokens").set_value(5).run()
    assert app.number_input(key="ask_seed").disabled
    asked(app, "The river runs")
    assert not app.error
    (job,) = store.list(kind="ask")
    spec = Ask().parse(job.spec)
    assert (spec.packed, spec.original) == (str(packed), str(mixtral_dir))
    assert (spec.prompt, spec.max_tokens, spec.temperature) == ("The river runs", 5, 0.0)
    assert not spec.chat
    assert job.title in words(app)
    assert "Nothing was asked yet" not in words(app)
    work()
    result = AskResult.of(store.get(job.id))
    assert result is not None, store.get(job.id).error
    on(app, "playground")
    assert answer_first(result.sentence) in words(app)
    assert len(result.original.tokens) == 5
    bodies = [element.proto.body for element in app.get("html")]
    assert len([body for body in bodies if "pre-wrap" in body]) == 2
    assert app.query_params["asked"] == str(job.id)


def test_a_finished_run_is_asked_with_its_original(
    app: AppTest, mixtral_dir: Path, packed: Path, workspace: Workspace, store: JobStore
) -> None:
    spec = {"checkpoint": str(mixtral_dir), "recipe": "name: x", "name": "one bit"}
    run = store.submit("run", spec, "one bit").id
    end_with(workspace, RUN | {"packed": str(packed)})
    on(app.run(), "playground")
    assert "one bit" in app.selectbox(key="ask_run").options[0]
    app.selectbox(key="ask_run").set_value(DIRECTORIES).run()
    assert app.text_input(key="ask_packed").value == ""
    assert "No run has finished yet" not in words(app)
    assert not app.get("page_link")
    app.selectbox(key="ask_run").set_value(run)
    app.number_input(key="ask_temperature").set_value(0.7).run()
    app.number_input(key="ask_seed").set_value(9).run()
    asked(app, "The mill")
    assert not app.error
    (job,) = store.list(kind="ask")
    assert (job.spec["packed"], job.spec["original"]) == (str(packed), str(mixtral_dir))
    assert (job.spec["temperature"], job.spec["seed"], job.spec["name"]) == (0.7, 9, "one bit")


def test_runs_of_other_versions_are_not_taken_for_none(app: AppTest, store: JobStore) -> None:
    add_ended(store, "run")
    with transaction(store.path) as db:
        db.execute("UPDATE jobs SET result = '{}'")
    on(app.run(), "playground")
    assert "No run has finished yet" not in words(app)
    assert "No run can be asked: other versions wrote them." in words(app)
    assert app.text_input(key="ask_packed").value == ""


def test_what_disagrees_is_listed(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, store: JobStore
) -> None:
    opened(app, mixtral_dir)
    spec = {"packed": "/w/packed", "original": str(mixtral_dir), "prompt": "The river"}
    for prompt in ("The first", "The second"):
        store.submit("ask", spec | {"prompt": prompt})
        end_with(workspace, REPLIES)
    on(app, "playground")
    assert [option.partition(" · ")[0] for option in app.selectbox(key="ask_shown").options] == [
        "The second",
        "The first",
    ]
    table = app.dataframe[0].value
    assert table[["reply", "token", "text", "other"]].to_numpy().tolist() == [
        ["original", 2, ".", " and"],
        ["compressed", 2, ".", " and"],
    ]
    assert table[["chance", "other_chance", "kl"]].to_numpy().tolist() == [[50.0, 25.0, 0.1]] * 2
    assert app.get("download_button")


def test_a_link_shows_the_replies_that_it_names(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, store: JobStore
) -> None:
    spec = {"packed": "/w/packed", "original": str(mixtral_dir), "prompt": "x"}
    ids = []
    for _ in range(2):
        ids.append(store.submit("ask", spec).id)
        end_with(workspace, REPLIES)
    app.query_params["asked"] = str(ids[0])
    app.run()
    assert on(app, "playground").selectbox(key="ask_shown").value == ids[0]


def test_what_cannot_be_asked_is_said_before_anything_is_filed(
    app: AppTest, mixtral_dir: Path, packed: Path, store: JobStore
) -> None:
    on(opened(app, packed), "playground")
    assert app.text_input(key="ask_packed").value == str(packed)
    asked(app, "  ")
    assert "write a prompt" in app.error[0].value
    mute = packed.parent / "mute"
    shutil.copytree(mixtral_dir, mute, ignore=shutil.ignore_patterns("*token*"))
    for place, sentence in (
        ("/etc", "outside the folders"),
        ("hf://somebody/model", "not on this machine"),
        (str(mute), "no tokenizer"),
        (str(packed.parent / "nothing"), "nothing"),
    ):
        app.text_input(key="ask_original").set_value(place).run()
        asked(app, "The river")
        assert sentence in app.error[0].value, place
    assert store.list(kind="ask") == []


def test_a_question_that_failed_says_why(
    app: AppTest, mixtral_dir: Path, packed: Path, workspace: Workspace, store: JobStore
) -> None:
    store.submit("ask", {"packed": str(packed), "original": str(mixtral_dir), "prompt": "x"})
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.fail("the tokenizer is gone")
    on(app.run(), "playground")
    assert "the tokenizer is gone" in app.error[0].value
