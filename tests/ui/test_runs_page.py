"""The Runs page: a run, its export, its failures, and what it may do, on real checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.stored_results import PARAMETERS, QUALITY, RESULTS
from support.studio_pages import on, opened, words

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.packed.patch import apply_patch
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.quality import Quality
from ders_core.recipe import FIRST_PRESET, presets
from ders_core.runtime.resident import resident_bytes
from ders_core.units import bytes_text


def test_run_then_export(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    work: Callable[[], None],
    tiny_text: str,
) -> None:
    text = workspace.path / "text.txt"
    text.write_text(tiny_text, encoding="utf-8")
    opened(app, mixtral_dir)
    on(app, "runs")
    assert "No runs" in words(app)
    app.text_area(key="run_text").set_value(str(text))
    app.number_input[0].set_value(512)
    app.number_input[1].set_value(1)
    app.button[0].click().run()
    assert not app.error
    assert "compress → " in words(app)
    assert "Log" not in [expander.label for expander in app.expander]  # of a run that waits
    work()
    on(app, "runs")
    store = JobStore(workspace.store_path)
    job = store.list(kind="run")[0]
    assert job.state == "done", job.error
    table = app.dataframe[0].value
    assert table["name"].tolist() == [FIRST_PRESET]
    assert job.result is not None
    assert table["ratio"].iloc[0] == pytest.approx(100 * job.result["ratio"])
    assert table["kl"].iloc[0] == job.result["quality"]["kl"]
    on(app, "export")
    in_memory = resident_bytes(open_checkpoint(job.result["packed"]))
    assert in_memory is not None
    whole, held = map(bytes_text, in_memory)
    assert f"{whole} with" in words(app)
    assert f"{held} and a cache" in words(app)
    formats = [tab.label for tab in app.tabs]
    assert formats == ["Packed DeRS checkpoint", "Original layout", "Patch"]
    assert [str(workspace.exports / FIRST_PRESET) in code.value for code in app.code] == [True] * 3
    app.button(key="export_packed").click().run()
    assert not app.error
    work()
    on(app, "export")
    out = workspace.exports / f"{FIRST_PRESET}-ders"
    assert f"{len(PackedCheckpoint(out).store.tensors)} checksums" in words(app)
    assert PackedCheckpoint(out).manifest.recipe["name"] == FIRST_PRESET
    assert (out / "README.md").read_text("utf-8").strip() in [code.value for code in app.code]
    assert f"{job.result['quality']['perplexity']:.4g}" in (out / "README.md").read_text("utf-8")
    base = app.text_input(key=f"base_{job.id}")
    base.set_value("/proc").run()
    app.button(key="export_patch").click().run()
    assert "/proc" in app.error[0].value
    base = app.text_input(key=f"base_{job.id}")
    base.set_value(str(mixtral_dir)).run()
    assert any(code.value.startswith(f"ders apply {mixtral_dir} ") for code in app.code)
    app.button(key="export_patch").click().run()
    assert not app.error
    work()
    on(app, "export")
    assert "travel" in words(app)
    apply_patch(
        mixtral_dir, workspace.exports / f"{FIRST_PRESET}-patch", workspace.path / "applied"
    )
    assert PackedCheckpoint(workspace.path / "applied").manifest.recipe["name"] == FIRST_PRESET


def test_a_run_that_fails_says_why_and_can_be_resumed(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, work: Callable[[], None]
) -> None:
    opened(app, mixtral_dir)
    store = JobStore(workspace.store_path)
    text = workspace.path / "late.txt"
    spec = {
        "checkpoint": str(mixtral_dir),
        "recipe": presets()["keep"].to_yaml(),
        "name": "late",
        "device": "cpu",
        "workers": 1,
        "text": str(text),
        "max_tokens": 512,
    }
    store.submit("run", spec, "late")
    work()
    on(app, "runs")
    assert "late.txt" in app.error[0].value
    text.write_text("one two three " * 400, encoding="utf-8")
    app.button(key=f"again_{store.list()[0].id}").click().run()
    work()
    assert store.list()[0].state == "done"
    on(app, "runs")
    assert app.dataframe[0].value["kl"].tolist() == [0.0]


def test_code_of_a_model_runs_only_where_it_is_allowed(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    text: Path,
    work: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed: list[bool] = []

    def evaluate(*paths: Path, trust_remote_code: bool, **options: object) -> Quality:
        allowed.append(trust_remote_code)
        return Quality(**QUALITY)

    monkeypatch.setattr("ders_core.evaluate.evaluate", evaluate)
    with_code = workspace.path / "with-code"
    shutil.copytree(mixtral_dir, with_code)
    config = json.loads((with_code / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (with_code / "config.json").write_text(json.dumps(config), encoding="utf-8")
    on(opened(app, with_code), "runs")
    assert "code of its own" in words(app)
    app.text_area(key="run_text").set_value(str(text)).run()
    app.number_input(key="run_workers").set_value(1).run()
    app.button(key="run_start").click().run()
    assert app.toggle(key="run_trust").value is False
    app.toggle(key="run_trust").set_value(True).run()
    assert "code of its own" not in words(app)
    app.button(key="run_start").click().run()
    work()
    assert allowed == [False, True]
    on(app, "checkpoint")
    on(opened(app, mixtral_dir), "runs")
    assert app.toggle(key="run_trust").value is False
    assert "code of its own" not in words(app)


def test_a_run_outside_the_roots_is_refused(app: AppTest, mixtral_dir: Path) -> None:
    opened(app, mixtral_dir)
    on(app, "runs")
    app.text_area(key="run_text").set_value("/etc/hostname")
    app.button[0].click().run()
    assert "/etc/hostname" in app.error[0].value
    assert "DERS_ROOTS" in app.error[0].value


def test_texts_measured_apart_worst_tokens_and_tasks_are_shown(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    opened(app, mixtral_dir)
    store = JobStore(workspace.store_path)
    store.submit("run", PARAMETERS["run"], "two texts")
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(RESULTS["run"][0])
    on(app, "runs")
    of_runs, texts, worst, tasks = (frame.value for frame in app.dataframe[:4])
    assert of_runs[["kl of code", "kl of prose"]].to_numpy().tolist() == [[0.4, 0.1]]
    assert of_runs["task endings, acc"].tolist() == [0.5]
    assert tasks.to_numpy().tolist() == [
        ["endings, acc", "0.5000 ± 0.25 (original 0.7500 ± 0.25)", 4]
    ]
    assert texts["text"].tolist() == ["code", "prose", "all together"]
    assert texts["kl"].tolist() == [0.4, 0.1, 0.25]
    assert texts["top1_agreement"].tolist() == [90.0] * 3
    assert worst[["domain", "before", "came", "model"]].to_numpy().tolist() == [
        ["code", "def f(", "x", "self"]
    ]
    assert "KL 0.250 (0.200 to 0.300) nats a token" in words(app)


def test_texts_with_names_are_typed_a_line_each(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, text: Path
) -> None:
    on(opened(app, mixtral_dir), "runs")
    app.text_area(key="run_text").set_value(f"code={text}\n{text}").run()
    app.button(key="run_start").click().run()
    assert "NAME=PATH" in app.error[0].value
    app.text_area(key="run_text").set_value(f" code = {text} \n\nprose={text}\n").run()
    app.button(key="run_start").click().run()
    assert not app.error
    filed = JobStore(workspace.store_path).list(kind="run")[0].spec["text"]
    assert filed == {"code": [str(text)], "prose": [str(text)]}


def test_long_names_are_cut_in_the_middle(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    """In the table, whose last column then has them whole, and in the sidebar."""
    long = "two-bits-of-every-expert-and-nothing-else"
    opened(app, mixtral_dir)
    JobStore(workspace.store_path).submit("run", PARAMETERS["run"], long)
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(RESULTS["run"][0])
    app.session_state["runs_all_columns"] = True
    on(app, "runs")
    table = app.dataframe[0].value
    assert table[["name", "whole name"]].to_numpy().tolist() == [
        ["two-bits-of-ev…-nothing-else", long]
    ]
    on(app, "recipe")
    app.text_input(key="recipe_name").set_value(f"{long}-at-all").run()
    app.button(key="recipe_save").click().run()
    framed = app.switch_page("app.py").run()
    entry = " ".join(each.value for each in framed.sidebar.markdown)
    assert f'<span title="{long}-at-all">' in entry
    assert "two-bits-of-every-ex…nothing-else-at-all" in entry


def test_a_run_is_renamed_and_described_and_says_what_deleting_frees(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    opened(app, mixtral_dir)
    store = JobStore(workspace.store_path)
    number = store.submit("run", PARAMETERS["run"], "plain name").id
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(RESULTS["run"][0])
    files = workspace.run_dir(number)
    files.mkdir(parents=True)
    (files / "weights").write_bytes(b"x" * 1_500_000)
    app.session_state["runs_table"] = {"selection": {"rows": [0], "columns": []}}
    on(app, "runs")
    app.session_state[f"describe_{number}"] = True  # the form is open
    app.run()
    assert app.text_input(key=f"describe_name_{number}").value == "plain name"
    app.text_input(key=f"describe_name_{number}").set_value("").run()
    app.button(key=f"describe_save_{number}").click().run()
    assert "a name is one line" in app.error[0].value
    app.text_input(key=f"describe_name_{number}").set_value("better :red[name]").run()
    app.text_input(key=f"describe_tags_{number}").set_value("2 bits, :red[kept]").run()
    app.text_area(key=f"describe_note_{number}").set_value("loses little\n\n# on code").run()
    app.button(key=f"describe_save_{number}").click().run()
    assert not app.error
    job = store.get(number)
    assert (job.title, job.tags) == ("better :red[name]", ("2 bits", ":red[kept]"))
    table = app.dataframe[0].value
    assert table[["name", "tags", "note"]].to_numpy().tolist() == [
        ["better :red[name]", "2 bits, :red[kept]", "loses little\n\n# on code"]
    ]
    shown = words(app)
    assert "loses little" in shown
    assert ":red[kept]" not in shown  # escaped
    assert "\\# on code" in shown
    app.button(key=f"delete_{number}").click().run()
    assert "frees 1.50 MB" in words(app)
