"""The Upcycle page: a dense model in, choices, what they take, a job out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from support.messages import raises_saying
from support.studio_pages import words
from support.toy_form import RowShift
from support.upcycle_pages import opened, page

from ders_core.errors import RecipeError
from ders_core.jobs import JobStore, Workspace
from ders_core.ui.upcycle import choices as upcycle_choices
from ders_core.ui.upcycle.comparison import comparison_table, sentence, variants
from ders_core.units import number_text
from ders_core.upcycle import DenseModel, UpcycleConfig, predict
from ders_core.upcycle.forms import FORMS

MIXED = """
version: 1
name: by hand
seed: 5
experts: 3
top_k: 1
layers: 0-1
universal: true
base: frozen
forms:
- projections: [gate, up]
  form: sparse
  drop_rate: 0.8
  renew: {first: 3, every: 4, until: 0.25, share: 0.5}
- projections: [down]
  form: lowrank
  rank: 2
noise: 0.1
router: {init: clusters, std: 0.3, train: false, balance: 0.02}
train: ['*.self_attn.*']
data: {texts: [a.txt, b.jsonl], heldout: c.txt, window: 64}
training:
  steps: 30
  batch: 2
  accumulation: 3
  learning_rate: 0.001
  base_rate: 0.0
  schedule: linear
  warmup: 1
  weight_decay: 0.1
  clip: 0.5
  bf16: true
  gradient_checkpointing: true
  save_every: 7
  keep: 1
  measure_every: 9
  heldout_tokens: 99
"""


def shown(app: AppTest) -> UpcycleConfig:
    """What the YAML tab says."""
    text = next(area.value for area in app.text_area if area.label == "Configuration")
    assert text is not None
    return UpcycleConfig.from_yaml(text)


def write_yaml(app: AppTest, text: str) -> None:
    next(area for area in app.text_area if area.label == "Configuration").set_value(text)
    app.button(key="up_yaml_apply").click().run()
    assert not app.exception


@pytest.mark.parametrize("text", [MIXED, "name: x\ndata: {texts: a.txt}\n"])
def test_choices_and_configuration_are_the_same_thing(text: str) -> None:
    config = UpcycleConfig.from_yaml(text)
    assert upcycle_choices.config_of(upcycle_choices.values_of(config), config) == config
    start = upcycle_choices.start()
    again = upcycle_choices.config_of(upcycle_choices.values_of(config), start)
    assert again.name == config.name
    assert again.training == config.training
    assert [again.form(p).label for p in ("gate", "up", "down")] == [
        config.form(p).label for p in ("gate", "up", "down")
    ]


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"top_k": 9}, ["top_k is 9", "4 experts"]),
        ({"layers": "list", "layers_list": "3-1"}, ["layers: ", "'3-1'", "backwards"]),
        ({"layers": "list", "layers_list": ""}, ["layers: ", "''", "'all'"]),
        ({"rank": None}, ["rank: ", "integer"]),
        ({"experts": None}, ["experts: ", "integer"]),
        ({"learning_rate": 0.0}, ["learning rate: ", "greater than 0"]),
    ],
)
def test_what_cannot_be_chosen_is_a_sentence(changed: dict[str, Any], facts: list[str]) -> None:
    start = upcycle_choices.start()
    with raises_saying(RecipeError, *facts):
        upcycle_choices.config_of(upcycle_choices.values_of(start) | changed, start)


def test_a_projection_that_the_model_lacks_follows_up() -> None:
    start = upcycle_choices.start()
    values = upcycle_choices.values_of(start) | {"form": "mixed", "form_up": "vanilla"}
    config = upcycle_choices.config_of(values, start, ["up", "down"])
    assert [config.form(p).label for p in ("gate", "up", "down")] == ["vanilla", "vanilla", "LM 4"]


def test_the_page_says_what_to_do_first(app: AppTest, workspace: Workspace) -> None:
    assert "Mixture-of-Experts?" in words(page(app))
    app.segmented_control(key="upcycle_view").set_value("runs").run()
    assert "No upcycling" in words(app)
    assert not list(workspace.path.glob("runs/*"))


def test_a_dense_model_is_described_in_a_line(app: AppTest, dense_parent_dir: Path) -> None:
    text = words(opened(app, dense_parent_dir))
    dense = DenseModel.open(dense_parent_dir)
    assert "mistral · 2 layers · 64 × 112" in text
    assert f"{number_text(dense.parameters / 1e3)} k parameters" in text
    assert "**LM 4** " in text
    again = AppTest.from_file(str(Path(__file__).parents[2] / "app.py"), default_timeout=60)
    assert "mistral · 2 layers" in words(page(again))  # it is open again in another session


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("mixtral", "Mixture-of-Experts already"),
        ("/etc", "DERS_ROOTS"),
        ("gone", "does not exist"),
    ],
)
def test_what_cannot_be_upcycled_is_said(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, path: str, fact: str
) -> None:
    place = mixtral_dir if path == "mixtral" else workspace.path / path
    state: dict[str, Any] = {
        "checkpoint": None,
        "recipe": None,
        "recent": [],
        "dense": str(place),
        "upcycle": "?",
    }
    (workspace.path / "studio.json").write_text(json.dumps(state), encoding="utf-8")
    page(app)
    assert str(place) in app.error[0].value
    assert fact in app.error[0].value
    assert "Mixture-of-Experts?" in words(app)


def test_the_table_is_what_is_predicted(app: AppTest, dense_parent_dir: Path) -> None:
    opened(app, dense_parent_dir)
    app.number_input(key="up_experts").set_value(5).run()
    app.segmented_control(key="up_form").set_value("sparse").run()
    app.number_input(key="up_drop_rate").set_value(0.75).run()
    assert not app.exception
    dense, config = DenseModel.open(dense_parent_dir), shown(app)
    assert config.experts == 5
    rows = app.dataframe[0].value.set_index("form")
    assert list(rows.index) == ["vanilla", "SM 0.75", "LM 4"]
    all_forms = variants(config, upcycle_choices.values_of(config))
    vanilla = predict(dense, all_forms["vanilla"])
    for label, variant in all_forms.items():
        sizes = predict(dense, variant)
        memory = sizes.parameter_bytes + sizes.gradient_bytes + sizes.optimizer_bytes
        assert rows.loc[label, "added"] == pytest.approx(sizes.added / 1e6)
        assert rows.loc[label, "added_share"] == pytest.approx(100 * sizes.added / vanilla.added)
        assert rows.loc[label, "disk"] == pytest.approx(sizes.packed_bytes / 1e6)
        assert rows.loc[label, "memory"] == pytest.approx(memory / 1e6)
        assert rows.loc[label, "optimizer"] == pytest.approx(sizes.optimizer_bytes / 1e6)
    app.segmented_control(key="up_form").set_value("mixed").run()
    app.segmented_control(key="up_form_down").set_value("vanilla").run()
    assert not app.exception
    assert len(app.dataframe[0].value) == 4
    assert "down: vanilla" in words(app)
    app.segmented_control(key="up_form").set_value("vanilla").run()
    assert "**vanilla** " in words(app)


def test_a_sentence_for_each_form(dense_parent_dir: Path) -> None:
    dense, config = DenseModel.open(dense_parent_dir), upcycle_choices.start()
    made = comparison_table(dense, variants(config, upcycle_choices.values_of(config)))
    low, vanilla = (made[made["form"] == name].iloc[0] for name in ("LM 4", "vanilla"))
    emptied = upcycle_choices.values_of(config) | {"rank": None}
    assert list(variants(config, emptied)) == ["vanilla", "SM 0.99", "LM 4"]
    share = 100 * low["added"] / vanilla["added"]
    assert f"{number_text(share)} %" in sentence(made, config)
    assert "vanilla" in sentence(made, config)


def test_the_text_sets_the_choices_and_names_its_faults(
    app: AppTest, dense_parent_dir: Path
) -> None:
    opened(app, dense_parent_dir)
    write_yaml(app, MIXED)
    config = UpcycleConfig.from_yaml(MIXED)
    assert shown(app) == config
    assert app.number_input(key="up_experts").value == 3
    assert app.segmented_control(key="up_form").value == "mixed"
    assert app.text_area(key="up_texts").value == "a.txt\nb.jsonl"
    assert app.text_input(key="up_layers_list").value == "0-1"
    app.number_input(key="up_experts").set_value(6).run()
    assert shown(app) == config.model_copy(update={"experts": 6})  # renew is as it was
    app.switch_page("pages/runs.py").run()
    app.switch_page("pages/upcycle.py").run()
    assert shown(app) == config.model_copy(update={"experts": 6})
    write_yaml(app, MIXED.replace("top_k: 1", "top_k: some"))
    assert "line 6" in app.error[0].value
    write_yaml(app, MIXED.replace("noise: 0.1", "nose: 0.1"))
    assert "line 18: " in app.error[0].value
    assert "key 'nose'" in app.error[0].value
    assert "nose: 0.1" in (app.text_area[-1].value or "")  # what was written stays, to be mended
    codes = [code.value for code in app.code]
    assert f"ders upcycle {dense_parent_dir} OUT --config upcycle.yaml" in codes


def test_a_choice_that_does_not_fit_the_model(app: AppTest, dense_parent_dir: Path) -> None:
    opened(app, dense_parent_dir)
    app.segmented_control(key="up_layers").set_value("list").run()
    app.text_input(key="up_layers_list").set_value("0,7").run()
    assert "layer 7" in app.error[0].value
    assert "0-1" in app.error[0].value
    assert not app.exception
    app.text_input(key="up_layers_list").set_value("1").run()
    assert shown(app).layers == "1"


def test_start_files_the_job(
    app: AppTest, workspace: Workspace, dense_parent_dir: Path, text: Path
) -> None:
    opened(app, dense_parent_dir)
    app.button(key="up_start").click().run()
    assert "one text" in app.error[0].value
    app.text_area(key="up_texts").set_value("/etc/hostname").run()
    app.button(key="up_start").click().run()
    assert "/etc/hostname" in app.error[0].value
    assert "DERS_ROOTS" in app.error[0].value
    app.text_area(key="up_texts").set_value(f"{text}\n{workspace.path / 'gone.txt'}").run()
    app.button(key="up_start").click().run()
    assert "gone.txt" in app.error[0].value
    app.text_area(key="up_texts").set_value(str(text)).run()
    app.number_input(key="up_steps").set_value(3).run()
    app.selectbox(key="up_device").set_value("cpu").run()
    app.button(key="up_start").click().run()
    assert not app.exception
    job = JobStore(workspace.store_path).list(kind="upcycle")[0]
    assert (job.title, job.spec["dense"], job.spec["device"]) == (
        "LM 4",
        str(dense_parent_dir),
        "cpu",
    )
    config = UpcycleConfig.from_yaml(job.spec["config"])
    assert (config.data.texts, config.training.steps) == ((text,), 3)
    assert app.button(key=f"cancel_{job.id}").label == "Stop"  # the page shows what runs
    app.segmented_control(key="upcycle_view").set_value("new").run()
    app.button(key="up_start").click().run()
    assert JobStore(workspace.store_path).list(kind="upcycle")[0].title == "LM 4 (2)"


def test_what_may_be_empty_can_be_emptied_again(app: AppTest, dense_parent_dir: Path) -> None:
    """The browser replaces an emptied number by the field's default, if it has one."""
    opened(app, dense_parent_dir)
    for name in ("base_rate", "router_rate"):
        field = app.number_input(key=f"up_{name}")
        assert not field.proto.HasField("default")
        field.set_value(0.25).run()
        assert getattr(shown(app).training, name) == 0.25
        app.number_input(key=f"up_{name}").set_value(None).run()
        assert getattr(shown(app).training, name) is None


def test_a_form_from_outside_is_offered_and_compared(app: AppTest, dense_parent_dir: Path) -> None:
    FORMS.register(RowShift)
    try:
        opened(app, dense_parent_dir)
        assert {"LM 4", "SM 0.99", "vanilla", "RS 2"} == set(app.dataframe[0].value["form"])
        app.segmented_control(key="up_form").set_value("rowshift").run()
        app.number_input(key="up_scale").set_value(0.5).run()
        assert not app.exception
        assert shown(app).label == "RS 0.5"
        assert "**RS 0.5** " in words(app)
    finally:
        FORMS.unregister(RowShift.name)
