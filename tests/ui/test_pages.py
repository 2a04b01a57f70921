"""Every page, run by Streamlit's own tester on real checkpoints and real jobs."""

from __future__ import annotations

import ast
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest
from support.changed_bytes import change_unseen
from support.recipe_pages import apply_text, recipe_of
from support.studio_pages import on, opened, words

from ders_core.analysis import analyze, sampled_verdict
from ders_core.analysis.group_table import TableInMemory
from ders_core.analysis.tables import COLUMNS
from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.jobs import JobStore, Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.calibration import write_calibration
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe, presets
from ders_core.ui.opened import Open
from ders_core.ui.recipe_table import choice_of, codecs_of, menu
from ders_core.units import number_text

ROOT = Path(__file__).parents[2]
PAGES = ("redundancy", "spectra", "recipe", "runs", "export")


@pytest.mark.parametrize("page", sorted((ROOT / "pages").glob("*.py")), ids=lambda page: page.stem)
def test_no_text_of_a_page_is_shown_by_accident(page: Path) -> None:
    """Streamlit shows a text that stands alone, except the first one of a file."""
    alone = [
        statement.lineno
        for statement in ast.parse(page.read_text(encoding="utf-8")).body[1:]
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    ]
    assert alone == []


def test_every_page_says_what_to_do_first(app: AppTest) -> None:
    app.run()
    assert "Mixture-of-Experts checkpoint" in words(app)
    for page in ("redundancy", "spectra", "recipe", "tune", "runs"):
        on(app, page)
        assert "No checkpoint" in words(app)
        assert app.button(key="need_demo").label == "Try the demo"
    assert "Nothing to export" in words(on(app, "export"))


def test_a_packed_checkpoint_is_opened_as_what_it_stands_for(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, work: Callable[[], None]
) -> None:
    packed = workspace.path / "packed"
    compress(mixtral_dir, packed, presets()["quantized-2bit"])
    opened(app, packed)
    text, checkpoint = words(app), open_checkpoint(packed)
    assert checkpoint.packed_bytes is not None
    size = f"{number_text(checkpoint.packed_bytes / 1e3)} kB"
    assert f"Packed: {size} on disk" in text
    assert f"it takes {size}" in text
    assert "4 experts × 2 layers, top-2." in text
    assert app.dataframe[0].value["layer"].tolist() == [0, 1]
    store, recipe = JobStore(workspace.store_path), presets()["quantized-1bit"].to_yaml()
    store.submit("analyze", {"checkpoint": str(packed)}, "look")
    run = store.submit("run", {"checkpoint": str(packed), "recipe": recipe}, "again")
    work()
    assert workspace.analysis_dir(checkpoint.identity).is_dir()
    again = PackedCheckpoint(workspace.run_dir(run.id) / "packed")
    assert again.manifest.source.identity == checkpoint.identity


def test_checkpoint_page_answers(app: AppTest, mixtral_dir: Path) -> None:
    opened(app, mixtral_dir)
    text = words(app)
    assert "4 experts × 2 layers, top-2." in text
    assert "share one start" in text
    checkpoint = open_checkpoint(mixtral_dir)
    saving = sampled_verdict(checkpoint).saving
    assert saving is not None
    assert saving.bits > 1  # what is asserted below is no sentence that says "nothing"
    assert "At the error of plain 4-bit coding, decomposition takes about" in text
    assert f"it saves {saving.bits:.1f} bits" in text
    shown = {metric.label: metric.value for metric in app.metric}
    assert shown["Weight files"] == f"{number_text(checkpoint.bytes_total / 1e3)} kB"
    assert shown["Experts' share"] == f"{number_text(100 * checkpoint.expert_share)} %"
    assert app.dataframe[0].value["layer"].tolist() == [0, 1]


def test_one_figure_on_every_page(app: AppTest, workspace: Workspace, mixtral_dir: Path) -> None:
    """A sample's is said to be one; where the analysis is there, its own is told."""
    source = open_checkpoint(mixtral_dir)
    assert "sample" in words(opened(app, mixtral_dir))
    analysis = analyze(source, spectra="none")
    moved = replace(analysis, groups=analysis.groups.assign(mean_one_minus_cos=0.1358))
    moved.save(workspace.analysis_dir(source.identity))
    for page in ("checkpoint", "redundancy"):
        text = words(on(app, page))
        assert "0.8642" in text
        assert "sample" not in text


def test_a_scratch_model_is_recognised(app: AppTest, scratch_dir: Path) -> None:
    opened(app, scratch_dir)
    text = words(app)
    assert "no common start" in text
    assert "At the error of plain 4-bit coding, decomposition saves nothing" in text
    assert "base: none codes the weights themselves" in text


@pytest.mark.parametrize(("path", "fact"), [("/etc", "DERS_ROOTS"), ("gone", "does not exist")])
def test_what_cannot_be_opened_is_said_on_every_page(
    app: AppTest, workspace: Workspace, path: str, fact: str
) -> None:
    opened_before: dict[str, Any] = {
        "checkpoint": str(workspace.path / path),
        "recipe": None,
        "recent": [],
    }
    (workspace.path / "studio.json").write_text(json.dumps(opened_before))
    app.run()
    for page in (None, *PAGES[:4]):
        if page is not None:
            on(app, page)
        assert path in app.error[0].value
        assert fact in app.error[0].value


def test_what_was_open_is_open_again(app: AppTest, mixtral_dir: Path) -> None:
    opened(app, mixtral_dir)
    again = AppTest.from_file(str(Path(__file__).parents[2] / "app.py"), default_timeout=60).run()
    assert "4 experts × 2 layers" in words(again)


def test_analysis_is_a_job_and_then_the_pages_show_it(
    app: AppTest, mixtral_dir: Path, work: Callable[[], None]
) -> None:
    opened(app, mixtral_dir)
    on(app, "redundancy").button(key="analyse").click().run()
    assert "Analyse" in words(app)
    work()
    on(app, "redundancy")
    assert "share one start" in words(app)
    assert "all 4 experts." in words(app)
    assert len(app.get("plotly_chart")) >= 4
    app.selectbox(key="red_layer").set_value(1).run()
    assert not app.exception
    on(app, "spectra")
    assert "keeps 95 % of" in words(app)
    app.segmented_control(key="spec_codec").set_value("quantized").run()
    assert not app.exception
    after = {metric.label: metric.value for metric in app.metric}
    assert (after["Expected gain"], after["Expected noise"]) == ("0.988", "0.107")
    whole = open_checkpoint(mixtral_dir).group(0, "gate").read().double()
    ratio = float((whole - whole.mean(0)).norm() / whole.norm())
    wanted = math.hypot(1 - 0.988, 0.107) * ratio
    assert float(after["Expected ‖Ŵ−W‖/‖W‖"]) == pytest.approx(wanted, rel=0.02)
    before = drawn_spectrum(app)
    app.slider(key="spec_quantized").set_value(1).run()
    assert drawn_spectrum(app) != before


def drawn_spectrum(app: AppTest) -> list[float]:
    """What the plot of the spectrum shows as kept, of its latest version."""
    charts = [each.proto for each in app.get("plotly_chart") if "spectrum" in each.proto.id]
    latest = max(charts, key=lambda proto: int(proto.id.rpartition("_")[2]))
    area: list[float] = json.loads(latest.spec)["data"][-1]["y"]
    return area


def test_redundancy_names_the_experts_that_share_a_base(
    app: AppTest, workspace: Workspace, work: Callable[[], None]
) -> None:
    """Layer 0: experts of two starts; layer 1: of one. The page shows each, and goes on."""
    torch.manual_seed(0)
    which = [0, 1, 1, 0, 0, 1, 0, 1]
    tensors: dict[str, torch.Tensor] = {}
    for layer, starts in enumerate(
        (torch.randn(2, 24, 16), torch.randn(1, 24, 16).expand(2, 24, 16))
    ):
        for expert, start in enumerate(which):
            weight = (starts[start] + 0.02 * torch.randn(24, 16)).bfloat16()
            block = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            tensors |= {f"{block}.{name}.weight": weight.clone() for name in ("w1", "w3")}
            tensors[f"{block}.w2.weight"] = weight.T.contiguous()
    directory = workspace.path / "two-starts"
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "mixtral", "num_local_experts": 8, "num_hidden_layers": 2}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    opened(app, directory)
    assert "2 sets of experts" in words(app)
    on(app, "redundancy").button(key="analyse").click().run()
    work()
    on(app, "redundancy")
    text = words(app)
    assert text.count("2 sets of experts") == 2  # the model's, and the layer's with their names
    assert "{0, 3, 4, 6}, {1, 2, 5, 7}" in text
    assert "base: {clusters: auto}" in text
    app.selectbox(key="red_layer").set_value(1).run()
    assert not app.exception
    assert "all 8 experts." in words(app)


def test_redundancy_of_layers_that_lack_a_projection(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    source = open_checkpoint(mixtral_dir)
    analysis = analyze(source, spectra="none")
    left: dict[str, Any] = {
        name: table[(table["layer"] == 0) | (table["projection"] != "gate")]
        for name in COLUMNS
        for table in [getattr(analysis, name)]
    }
    pairs, curves = (TableInMemory.of(left.pop(name)) for name in ("similarity", "spectra"))
    replace(analysis, pairs=pairs, curves=curves, **left).save(
        workspace.analysis_dir(source.identity)
    )
    on(opened(app, mixtral_dir), "redundancy")
    assert app.selectbox(key="red_projection").value == "gate"
    app.selectbox(key="red_layer").set_value(1).run()
    assert not app.exception
    assert app.selectbox(key="red_projection").options == ["up", "down"]
    assert app.selectbox(key="red_projection").value == "up"


def test_an_analysis_of_other_weights_is_not_shown(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """A bit that the identity does not see was changed since: the page asks for a new analysis."""
    copy = Path(shutil.copytree(mixtral_dir, workspace.path / "copy"))
    source = open_checkpoint(copy)
    analyze(source, spectra="none").save(workspace.analysis_dir(source.identity))
    on(opened(app, copy), "redundancy")
    assert [box.key for box in app.selectbox if box.key == "red_layer"]
    change_unseen(copy, "model.layers.0.block_sparse_moe.experts.1.w1.weight")
    on(app, "redundancy")
    assert not app.exception
    assert not [box.key for box in app.selectbox if box.key == "red_layer"]


def test_recipe_presets_edits_undo_and_files(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    opened(app, mixtral_dir)
    on(app, "recipe")
    app.session_state["presets"] = True  # the row of cards is open
    app.run().button(key="preset_quantized-2bit").click().run()
    checkpoint = open_checkpoint(mixtral_dir)
    wanted = resolve(presets()["quantized-2bit"], checkpoint)
    shown = {metric.label: metric.value for metric in app.metric}
    assert shown["After"] == f"{number_text(wanted.bytes_after / 1e3)} kB"
    assert {"After", "Of original"} <= {metric.label for metric in bottom(app).metric}
    app.multiselect(key="set_projections").set_value(["down"]).run()
    app.selectbox(key="set_codec").set_value("low rank").run()
    app.number_input(key="set_low rank").set_value(5).run()
    app.button(key="set_apply").click().run()
    assert not app.exception
    edited = recipe_of(app)
    assert edited.codec(1, "down").dump() == {"codec": "lowrank", "rank": 5}
    assert edited.codec(1, "up") == presets()["quantized-2bit"].codec(1, "up")
    app.text_input[0].set_value("edited").run()
    app.button(key="recipe_save").click().run()
    saved = Recipe.from_yaml((workspace.recipes / "edited.yaml").read_text(encoding="utf-8"))
    assert saved.rules == edited.rules
    assert "No difference." in [code.value for code in app.code]
    app.selectbox(key="recipe_difference").set_value("preset: quantized-2bit").run()
    (lines,) = [code.value for code in app.code if code.language == "diff"]
    assert "+  rank: 5" in [line.replace("    ", "  ") for line in lines.splitlines()]
    assert app.button(key="recipe_redo").disabled
    app.button(key="recipe_undo").click().run()
    app.button(key="recipe_undo").click().run()
    assert recipe_of(app).rules == presets()["quantized-2bit"].rules
    app.button(key="recipe_redo").click().run()
    app.button(key="recipe_redo").click().run()
    assert (recipe_of(app).name, recipe_of(app).rules) == ("edited", edited.rules)
    assert app.button(key="recipe_redo").disabled
    app.button(key="recipe_undo").click().run()
    app.session_state["presets"] = True
    app.run().button(key="preset_quantized-1bit").click().run()
    assert app.button(key="recipe_redo").disabled  # a change leaves nothing to redo


def bottom(app: AppTest) -> Any:
    """What stays at the bottom of the window while the page scrolls."""
    return app._tree[3]


def test_every_codec_of_the_menu_can_be_set_for_all(app: AppTest, mixtral_dir: Path) -> None:
    """One after another: bits are whole numbers for one codec, and not for another."""
    opened(app, mixtral_dir)
    on(app, "recipe")
    need_calibration = ("unbiased by sensitivity", "entropy with feedback")
    for label in [*menu(), *reversed(menu())]:
        app.selectbox(key="set_codec").set_value(label).run()
        app.button(key="set_apply").click().run()
        assert not app.exception
        if label in need_calibration:
            assert "ders calibrate" in app.error[0].value
            continue
        codecs = codecs_of(resolve(recipe_of(app), open_checkpoint(mixtral_dir))).values()
        assert {choice_of(codec) for codec in codecs} == {label}


def test_the_base_and_the_calibration_are_chosen(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    identity = open_checkpoint(mixtral_dir).identity
    measured = workspace.path / "moments.safetensors"
    write_calibration(measured, identity, 9, {"0.routed": torch.tensor([1, 2, 3, 4])})

    def control() -> Any:
        return next(item for item in app.segmented_control if item.label == "Base")

    def field() -> Any:
        return next(item for item in app.text_input if item.label == "Calibration")

    opened(app, mixtral_dir)
    on(app, "recipe")
    assert not app.markdown  # nothing but controls: no text that was meant for readers of the code
    control().set_value("median").run()
    assert recipe_of(app).base.name == "median"
    assert "mean by use" not in control().options
    field().set_value("/proc/1/environ").run()
    assert "/proc/1/environ" in app.error[0].value
    assert "DERS_ROOTS" in app.error[0].value
    field().set_value(str(measured)).run()
    assert not app.error, app.error[0].value
    control().set_value("mean by use").run()
    recipe = recipe_of(app)
    assert (recipe.base.name, recipe.calibration) == ("routed", measured)
    field().set_value("").run()
    assert "calibration" in app.error[0].value
    assert not app.exception


def test_yaml_errors_name_their_line(app: AppTest, mixtral_dir: Path) -> None:
    apply_text(opened(app, mixtral_dir), "version: 1\nname: x\nrules:\n  - codec: quantised\n")
    assert "line 4" in app.error[0].value
    assert "codec 'quantised'" in app.error[0].value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\ncalibration: /etc/passwd\n", "/etc/passwd lies outside the folders"),
        ("name: x\nbase: {dense: /etc}\n", "/etc lies outside the folders"),
        ("name: x\nbase: {dense: 'hf://a/b'}\n", "a/b lies outside the folders"),
        (
            "name: x\nrules:\n" + "- {codec: quantized, bits: 2}\n" * 6000,
            f"at most {MOST_CHARACTERS}",
        ),
    ],
)
def test_a_text_that_names_forbidden_files_or_grows_too_long_is_not_applied(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, text: str, told: str
) -> None:
    opened(app, mixtral_dir)
    before = Open.load(workspace)
    assert len(text) < MOST_CHARACTERS
    apply_text(app, text)
    (error,) = (each.value for each in app.error)
    assert told in error
    assert Open.load(workspace) == before
    assert app.button(key="recipe_undo").disabled
