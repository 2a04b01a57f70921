"""Answers of several runs to the same prompts, beside those of their original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.stored_results import RUN
from support.studio_pages import on, words

from ders_core.evaluate import compare_replies
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.kinds.compare import CompareResult
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets
from ders_core.ui.plain import strong
from ders_core.ui.playground.marked import marked, unmarked


@pytest.fixture
def store(workspace: Workspace) -> JobStore:
    return JobStore(workspace.store_path)


@pytest.fixture
def runs(workspace: Workspace, store: JobStore, mixtral_dir: Path) -> dict[str, Path]:
    """Two finished runs, by name."""
    made = {}
    for preset in ("quantized-1bit", "lossless"):
        made[preset] = workspace.path / preset
        compress(mixtral_dir, made[preset], presets()[preset])
        spec = {"checkpoint": str(mixtral_dir), "recipe": "name: x", "name": preset}
        store.submit("run", spec, preset)
        claim = Claims(workspace.store_path, "me").claim()
        assert claim is not None
        claim.complete(RUN | {"packed": str(made[preset])})
    return made


def html(app: AppTest) -> list[str]:
    return [element.proto.body for element in app.get("html")]


def begin(app: AppTest, tokens: int) -> None:
    on(app.run(), "runs")
    app.number_input(key="answers_tokens").set_value(tokens).run()


def ask(app: AppTest, prompts: str) -> None:
    app.text_area(key="answers_prompts").set_value(prompts).run()
    app.button(key="answers_start").click().run()
    assert not app.exception


def test_runs_answer_beside_their_original(
    app: AppTest,
    store: JobStore,
    runs: dict[str, Path],
    mixtral_dir: Path,
    work: Callable[[], None],
) -> None:
    begin(app, tokens=6)
    ask(app, " The river runs \n\nA mill\n")
    (job,) = store.list(kind="compare")
    assert job.spec["prompts"] == ["The river runs", "A mill"]
    assert {model["name"] for model in job.spec["models"]} == set(runs)
    work()
    result = CompareResult.of(store.get(job.id))
    assert result is not None, store.get(job.id).error
    on(app, "runs")
    names = [model["name"] for model in job.spec["models"]]
    alone = [
        compare_replies(runs[name], mixtral_dir, "The river runs", max_tokens=6) for name in names
    ]
    shown = {
        column.markdown[0].value: column.get("html")[0].proto.body
        for column in reversed(app.columns)  # of several with one title, the first counts
        if column.get("html")
    }
    assert shown == {
        "**Original**": unmarked(alone[0].original),
        **{
            strong(name): marked(replies.compressed, "the original")
            for name, replies in zip(names, alone, strict=True)
        },
    }
    assert "the same 6 tokens" in words(app)
    assert app.get("download_button")


def test_what_was_asked_is_not_asked_again(
    app: AppTest,
    store: JobStore,
    runs: dict[str, Path],
    mixtral_dir: Path,
    work: Callable[[], None],
) -> None:
    begin(app, tokens=2)
    ask(app, "The river")
    work()
    on(app, "runs")
    ask(app, "The river")
    assert len(store.list(kind="compare")) == 1
    ask(app, "The mill")
    assert len(store.list(kind="compare")) == 2
    work()
    on(app, "runs")
    ask(app, "The river")
    assert len(store.list(kind="compare")) == 2
    assert app.selectbox(key="answers_shown").value == store.list(kind="compare")[-1].id
    packed = runs["quantized-1bit"]
    for file in packed.iterdir():
        file.unlink()
    packed.rmdir()
    compress(mixtral_dir, packed, presets()["quantized-2bit"])
    changed = "A checkpoint that was asked has changed since, or is gone. Ask again."
    assert changed not in words(app)
    on(app, "runs")
    assert changed in words(app)
    ask(app, "The river")
    assert len(store.list(kind="compare")) == 3


def test_prompts_of_several_lines_are_named_in_one(
    work: Callable[[], None],
    app: AppTest,
    runs: dict[str, Path],
    store: JobStore,
    mixtral_dir: Path,
) -> None:
    models = [{"name": name, "packed": str(packed)} for name, packed in runs.items()]
    for prompt in ("The river\n  runs\n", "The mill"):
        asked = {"original": str(mixtral_dir), "models": models, "prompts": [prompt]}
        store.submit("compare", asked | {"max_tokens": 1})
    work()
    on(app.run(), "runs")
    assert app.selectbox(key="answers_shown").options == ["The mill", "The river ↵ runs"]
    app.selectbox(key="answers_shown").select_index(1).run()
    assert strong("The river ↵ runs") in words(app)


def test_what_cannot_be_asked(app: AppTest, store: JobStore, runs: dict[str, Path]) -> None:
    on(app.run(), "runs")
    ask(app, " \n")
    assert "write a prompt" in app.error[0].value
    ask(app, "a\n" * 9)
    assert "9 prompts" in app.error[0].value
    assert store.list(kind="compare") == []


def test_a_comparison_that_failed_says_why(
    app: AppTest, store: JobStore, runs: dict[str, Path], workspace: Workspace
) -> None:
    on(app.run(), "runs")
    ask(app, "The river")
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.fail("the tokenizer is gone")
    on(app, "runs")
    assert "the tokenizer is gone" in app.error[0].value
    assert html(app) == [] or not any("pre-wrap" in body for body in html(app))
