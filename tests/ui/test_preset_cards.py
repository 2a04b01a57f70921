"""The presets as cards: what each leaves of the open checkpoint, and what it is for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest
from support.recipe_pages import recipe_of
from support.stored_results import QUALITY, RUN
from support.studio_pages import on, opened, words

from ders_core.checkpoint import Checkpoint
from ders_core.errors import RecipeError
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import Plan, resolve
from ders_core.recipe import Recipe, presets
from ders_core.ui import reads
from ders_core.ui.preset_cards import ROW, cards_of
from ders_core.units import bytes_text, share_text


def names_of(app: AppTest) -> list[str]:
    keys = [str(button.key) for button in app.button]
    return [key.removeprefix("preset_") for key in keys if key.startswith("preset_")]


def test_the_smallest_file_comes_first_and_one_click_takes_it(
    app: AppTest, mixtral_dir: Path
) -> None:
    opened(app, mixtral_dir)
    on(app, "recipe")
    assert names_of(app) == []  # nothing is planned before somebody asks
    app.session_state[ROW] = True
    app.run()
    source, names = open_checkpoint(mixtral_dir), names_of(app)
    plans = {name: resolve(presets()[name], source) for name in names}
    useless = [name for name, plan in plans.items() if is_useless(plan)]
    assert set(names) == set(presets())
    assert useless  # nothing else would be tested of them
    assert names[-len(useless) :] == useless
    sizes = [plans[name].bytes_after for name in names if name not in useless]
    assert sizes == sorted(sizes)
    shown = words(app)
    assert all(f"{bytes_text(size)}**" in shown for size in sizes)
    assert shown.count("The data decide the size") == len(useless)
    assert "The paper sees no loss at 2 bits" in shown
    app.button(key="preset_lossless").click().run()
    assert recipe_of(app) == presets()["lossless"]
    assert names_of(app) == []  # what was taken is below


def is_useless(plan: Plan) -> bool:
    """Whether its bound is no less than the original."""
    return not plan.exact and plan.bytes_after >= plan.bytes_before


def test_a_bound_above_the_original_is_not_shown_and_a_sample_is_asked(
    app: AppTest, mixtral_dir: Path
) -> None:
    source = open_checkpoint(mixtral_dir)
    plan = resolve(presets()["lossless"], source)
    assert is_useless(plan)
    bound = bytes_text(plan.bytes_after)
    opened(app, mixtral_dir)
    app.session_state[ROW] = True
    on(app, "recipe")
    assert bound not in words(app)
    app.button(key="predict_lossless").click().run()
    assert not app.exception
    told = forecast(plan, source)
    assert told.bytes_after < plan.bytes_before
    size = bytes_text(told.bytes_after)
    assert f"**{size}**, {share_text(told.bytes_after / plan.bytes_before)} of original" in words(
        app
    )
    assert "predict_lossless" not in [button.key for button in app.button]
    app.button(key="preset_lossless-whole").click().run()
    cells = {metric.label: metric.value for metric in app.metric}
    assert (cells["After"], cells["Of original"]) == ("not known yet", "not known yet")
    app.button(key="predict").click().run()
    assert not app.exception
    whole = resolve(presets()["lossless-whole"], source)
    foretold = forecast(whole, source)
    labels = {metric.label: metric.value for metric in app.metric}
    assert labels["After" if foretold.exact else "After, about"] == bytes_text(foretold.bytes_after)


def test_one_that_does_not_fit_comes_last_and_says_why(
    app: AppTest, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(source: Checkpoint, recipe: Recipe) -> Plan:
        if recipe.name == "keep":
            raise RecipeError("layer 0 has no experts")
        return resolve(recipe, source)

    monkeypatch.setattr(reads, "plan", plan)
    *others, last = cards_of(open_checkpoint(mixtral_dir))
    assert (last.name, last.plan) == ("keep", None)
    assert "layer 0 has no experts" in last.size
    assert all(card.plan is not None for card in others)
    opened(app, mixtral_dir)
    app.session_state[ROW] = True
    on(app, "recipe")
    assert app.button(key="preset_keep").disabled


def run_of(
    workspace: Workspace, checkpoint: Path, recipe: Recipe, title: str, kl: float | None
) -> Path:
    """A finished run with a packed checkpoint; returns its directory."""
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(checkpoint), "recipe": recipe.to_yaml()}
    packed = workspace.run_dir(store.submit("run", spec, title).id) / "packed"
    packed.parent.mkdir(parents=True)
    compress(checkpoint, packed, recipe)
    claim = Claims(store.path, "me").claim()
    assert claim is not None
    quality = None if kl is None else QUALITY | {"kl": kl, "kl_low": kl / 2, "kl_high": 2 * kl}
    claim.complete(RUN | {"packed": str(packed), "quality": quality})
    return packed


def test_what_a_run_measured_stands_on_the_card(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    here = shutil.copytree(mixtral_dir, workspace.path / "here")
    renamed = presets()["quantized-2bit"].model_copy(update={"name": "mine"})
    run_of(workspace, here, presets()["quantized-2bit"], "older", 0.4)
    run_of(workspace, here, renamed, "newer", 0.25)
    run_of(workspace, here, renamed, "not measured", None)
    run_of(workspace, mixtral_dir, presets()["quantized-1bit"], "of another", 0.7)
    opened(app, here)
    app.session_state[ROW] = True
    on(app, "recipe")
    assert "KL 0.250 (0.125 to 0.500) nats a token, measured on 511 tokens" in words(app)
    assert "**newer**" in words(app)
    for word in ("older", "not measured", "of another"):
        assert word not in words(app)
    tensors = load_file(here / "model.safetensors")  # another model takes its place
    tensors["model.norm.weight"] += 1
    save_file(tensors, here / "model.safetensors", metadata={"format": "pt"})
    app.run()
    assert "nats a token, measured" not in words(app)
