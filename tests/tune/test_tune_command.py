"""`ders tune` and the job: a recipe that `ders compress` takes, and refusals in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.scored_model import Scored
from support.shell import ders, error_of

from ders_core.codecs import Keep
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.kinds.tune import CALIBRATION, TuneResult
from ders_core.jobs.worker import run_worker
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import load_recipe


@pytest.fixture(autouse=True)
def _kept_scores(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the fixture lie in the user's cache."""
    assert scored.directory.name == Workspace(".").scores.name
    monkeypatch.setenv("DERS_CACHE", str(scored.directory.parent))


def test_a_budget_becomes_a_recipe_that_keeps_to_it(scored: Scored, tmp_path: Path) -> None:
    place, recipe = scored.checkpoint.path, tmp_path / "small.yaml"
    known = ("--calibration", scored.calibration)
    done = ders("tune", place, "--budget", "65%", *known, "-o", recipe, "--keep", "1", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["bytes_after"] <= 0.65 * printed["bytes_before"]
    tuned = load_recipe(recipe)
    assert tuned.name == "small"
    assert tuned.codec(1, "gate") == Keep()
    assert tuned.codec(0, "gate") != Keep()
    report = compress(place, tmp_path / "packed", tuned)
    assert report.bytes_after <= 0.65 * report.bytes_before
    assert report.predicted_kl == pytest.approx(printed["predicted_kl"], rel=0.2)


def test_low_rank_leaves_no_part_of_a_budget_unused(scored: Scored, tmp_path: Path) -> None:
    """Rows do not tell what it takes; that is no reason to ask for less than there may be."""
    place, recipe = scored.checkpoint.path, tmp_path / "low.yaml"
    known = ("--calibration", scored.calibration, "-o", recipe, "--json")
    done = ders("tune", place, "--budget", "60%", "--pin", "0-1=lowrank", *known)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["bytes_after"] <= 0.6 * printed["bytes_before"]
    report = compress(place, tmp_path / "packed", load_recipe(recipe))
    assert report.bytes_after <= 0.6 * report.bytes_before
    assert report.bytes_after == printed["bytes_after"]  # here whole matrices tell it
    assert report.predicted_kl == pytest.approx(printed["predicted_kl"])
    assert report.bytes_after > 0.55 * report.bytes_before


def test_pins_floors_and_a_rise_are_kept(scored: Scored, tmp_path: Path) -> None:
    place, recipe = scored.checkpoint.path, tmp_path / "r.yaml"
    known = ("--calibration", scored.calibration, "-o", recipe, "--json")
    wishes = ("--pin", "0=quantized", "--floor", "1=5")
    done = ders("tune", place, "--max-rise", "5%", *wishes, *known)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["bound"] == {"measure": "kl", "most": pytest.approx(0.04879, rel=1e-3)}
    units = printed["units"]
    pinned = [each for each in units if re.fullmatch("layer 0, [a-z]+", each["unit"])]
    assert len(pinned) == 3
    assert all("blocks of" in each["codec"] for each in pinned)
    of_layer = [each for each in units if each["unit"].startswith("layer 1, ")]
    assert len(of_layer) == 6
    assert all(each["bits"] >= 5 or each["predicted_kl"] == 0 for each in of_layer)


def test_a_kl_becomes_a_table(scored: Scored, tmp_path: Path) -> None:
    place, recipe = scored.checkpoint.path, tmp_path / "r.yaml"
    known = ("--calibration", scored.calibration)
    done = ders("tune", place, "--max-kl", "0.05", *known, "-o", recipe, "--hardware-friendly")
    assert done.returncode == 0, done.stderr
    for fact in ("layer 0, gate", "0.05 nats", "written", "not measured"):
        assert fact in done.stdout
    codecs = [rule.codec for rule in load_recipe(recipe).rules]
    assert all(codec.is_hardware_friendly for codec in codecs)


def test_what_cannot_be_done_is_said(scored: Scored, tmp_path: Path) -> None:
    place, recipe = scored.checkpoint.path, tmp_path / "r.yaml"
    known = ("--calibration", scored.calibration)
    for words, fact in (
        (("--budget", "1%", *known), "the least"),
        (("--budget", "big", *known), "'big'"),
        (("--budget", "40%"), "either"),
        (known, "either"),
        (("--budget", "40%", *known, "--keep", "x"), "layers"),
        (("--budget", "40%", *known, "--keep", ""), "layers"),
        (("--budget", "40%", *known, "--forbid", "x"), "unknown codec"),
        (("--budget", "40%", *known, "--pin", "quantized"), "0,5-7=quantized"),
        (("--budget", "40%", *known, "--pin", "0=x"), "unknown codec"),
        (("--budget", "40%", *known, "--floor", "0=many"), "'many'"),
        (("--budget", "40%", *known, "--floor", "x=4"), "layers"),
        (("--budget", "40%", *known, "--floor", "40=4"), "layers 0-1"),
        (("--max-rise", "1", *known), "1%"),
        (("--max-rise", "1%", "--max-kl", "1", *known), "either"),
    ):
        assert fact in error_of(ders("tune", place, *words, "-o", recipe))
        assert not recipe.exists()


def test_a_job_tunes(
    scored: Scored,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path_factory.getbasetemp()))
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(scored.directory, workspace.scores)
    store = JobStore(workspace.store_path)
    spec = {
        "checkpoint": str(scored.checkpoint.path),
        "budget": "50%",
        "calibration": str(scored.calibration),
    }
    number = store.submit("tune", spec, "tuned").id
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "done", job.error
    result = TuneResult.of(job)
    assert result is not None
    assert result.bytes_after <= 0.5 * open_checkpoint(scored.checkpoint.path).bytes_total
    assert load_recipe(result.recipe).calibration == scored.calibration
    assert {unit["unit"] for unit in result.units} >= {"layer 0, gate", "layer 0, gate, base"}


@pytest.mark.parametrize(
    ("wish", "fact"),
    [
        ({"pin": ["0=quantised"]}, "quantised"),
        ({"floor": ["40=4"]}, "layers '40'"),
        ({"keep": "40"}, "layers '40'"),
        ({"budget": "many"}, "'many'"),
    ],
    ids=["pin", "floor", "keep", "budget"],
)
def test_what_cannot_be_done_is_said_before_a_calibration(
    scored: Scored,
    tiny_text: str,
    wish: dict[str, Any],
    fact: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path_factory.getbasetemp()))
    workspace, text = Workspace(tmp_path / "workspace"), tmp_path / "text.txt"
    text.write_text(tiny_text, encoding="utf-8")
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(scored.checkpoint.path), "budget": "50%", "text": str(text)}
    number = store.submit("tune", spec | wish, "tuned").id
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "failed"
    assert fact in (job.error or "")
    assert not (workspace.run_dir(number) / CALIBRATION).exists()


def test_the_command_says_it_before_a_calibration(
    scored: Scored, tiny_text: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny_text, encoding="utf-8")
    words = ("--budget", "40%", "--text", text, "--keep", "40", "-o", tmp_path / "r.yaml")
    assert "layers '40'" in error_of(ders("tune", scored.checkpoint.path, *words))
    assert list(tmp_path.iterdir()) == [text]
