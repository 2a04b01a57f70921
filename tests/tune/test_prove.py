"""Proofs on a real tiny model: what is measured, what is kept, and what is not measured twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.evaluate_support import measure
from support.gradient_calibrations import with_gradients
from support.shell import ders, error_of

from ders_core.errors import RecipeError
from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.kinds.prove import ProveResult
from ders_core.jobs.kinds.series import SeriesResult
from ders_core.jobs.worker import run_worker
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.quality import KL
from ders_core.recipe import Recipe
from ders_core.tune import measuring, scoring
from ders_core.tune import series as series_module
from ders_core.tune.bounds import Bound
from ders_core.tune.candidates import codecs_for
from ders_core.tune.measuring import Setting
from ders_core.tune.prove import ROUNDS, UNIFORM, Proof, prove
from ders_core.tune.scores import Scores
from ders_core.tune.scoring import score
from ders_core.tune.series import series
from ders_core.tune.workbench import Proposal, Workbench
from ders_core.units import number_text

SIZES: dict[str, Any] = {"max_tokens": 310, "window": 32, "batch": 10}
FORMS = ("quantized", "lowrank", "keep")
"""All forms in all strengths would take a minute to score."""


@dataclass(frozen=True)
class Tuning:
    """A model, scores by a calibration whose numbers are chosen, and a directory of trials."""

    original: Path
    calibration: Path
    scores: Scores
    trials: Path
    setting: Setting

    def prove(self, bound: Bound, **options: Any) -> Proof:
        checkpoint = open_checkpoint(self.original)
        return prove(
            checkpoint,
            self.scores,
            self.calibration,
            bound,
            self.trials,
            self.setting,
            **options,
        )


@pytest.fixture(scope="module")
def tuning(pair: Any, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    place = tmp_path_factory.mktemp("tuning")
    checkpoint = open_checkpoint(pair.original)
    # errors of the whole size of a weight cost several nats, as they do in this model
    calibration = with_gradients(checkpoint, place / "calibration.safetensors", cost=10.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scoring,
            "codecs_for",
            lambda *given, **options: [
                codec for codec in codecs_for(*given, **options) if codec.name in FORMS
            ],
        )
        scores = score(checkpoint, calibration.path, directory=place / "scores")
    setting = Setting(text_file, **SIZES)
    return Tuning(pair.original, calibration.path, scores, place / "trials", setting)


@pytest.fixture(scope="module")
def proof(tuning: Tuning) -> Proof:
    return tuning.prove(Bound("share", 0.55))


def test_what_a_process_left_that_died_after_measuring_is_removed(
    tuning: Tuning, proof: Proof
) -> None:
    left = [
        tuning.trials / f"{measuring.PACKING}-{file.stem[:8]}"
        for file in tuning.trials.glob("*.json")
    ]
    assert len(left) >= len(proof.trials)
    for directory in left:
        directory.mkdir()
        (directory / "model.safetensors").touch()
    assert tuning.prove(Bound("share", 0.55)) == proof  # no trial is measured again
    assert not any(directory.exists() for directory in left)


def test_the_solution_and_uniform_recipes_are_measured(proof: Proof) -> None:
    roles = [trial.role for trial in proof.trials]
    assert roles[0] == "tuned"
    assert 1 <= roles.count("tuned") <= ROUNDS
    assert 1 <= roles.count("uniform") <= UNIFORM
    recipes = [trial.recipe for trial in proof.trials]
    assert len(set(recipes)) == len(recipes)
    for trial in proof.trials:
        if trial.role == "uniform":
            rules = Recipe.from_yaml(trial.recipe).rules
            assert {rule.codec.name for rule in rules} == {trial.form}
            assert len(rules) == 1


def test_the_best_of_all_that_was_measured_is_kept(proof: Proof) -> None:
    keeping = [trial for trial in proof.trials if trial.keeps]
    assert proof.best is not None
    best = proof.trials[proof.best]
    assert best.keeps
    assert best.measured.kl == min(trial.measured.kl for trial in keeping)
    assert all(trial.keeps == (trial.size <= trial.most) for trial in proof.trials)
    assert number_text(best.measured.kl) in proof.sentence
    assert best.label in proof.sentence


def test_costs_by_form_are_those_of_the_scores(proof: Proof, tuning: Tuning) -> None:
    """Whatever factors a solution was found with: what is fitted must not know them yet. By the
    scores, the first solution is the best one, and uniform recipes are no mixtures."""
    first, *later = [sum(trial.costs.values()) for trial in proof.trials if trial.role == "tuned"]
    assert first == pytest.approx(proof.trials[0].predicted_kl)
    assert all(cost >= first * (1 - 1e-6) for cost in later)
    for trial in proof.trials:
        if trial.role == "uniform":
            assert sum(trial.costs.values()) == pytest.approx(trial.predicted_kl)


def test_factors_that_mislead_are_believed_less(
    tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors that are wrong, again and again: each solution by them is worse than the first."""
    beliefs = list[float]()
    solved = Workbench.solved

    def misled(bench: Workbench, bound: Bound) -> Proposal | None:
        beliefs.append(bench.belief)
        bench.factors = {"quantized": 30.0, "lowrank": 1 / 30}
        return solved(bench, bound)

    monkeypatch.setattr(Workbench, "solved", misled)
    misproved = tuning.prove(Bound("share", 0.5))
    assert beliefs == sorted(beliefs, reverse=True)
    assert len(beliefs) < ROUNDS
    kept = [trial.measured.kl for trial in misproved.trials if trial.keeps]
    assert misproved.best is not None
    assert misproved.trials[misproved.best].measured.kl == min(kept)


def test_what_was_measured_is_what_the_recipe_gives(
    proof: Proof, tuning: Tuning, text_file: Path, tmp_path: Path
) -> None:
    assert proof.best is not None
    best = proof.trials[proof.best]
    report = compress(tuning.original, tmp_path / "packed", Recipe.from_yaml(best.recipe))
    assert report.bytes_after == best.measured.nbytes == best.size
    quality = measure(tmp_path / "packed", tuning.original, text_file, batch=10)
    assert quality.kl == pytest.approx(best.measured.kl, rel=1e-6)
    assert quality.kl_low == pytest.approx(best.measured.quality.kl_low, rel=1e-6)


def test_nothing_is_measured_twice(
    proof: Proof, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> Any:
        pytest.fail("it was measured before")

    monkeypatch.setattr(measuring, "compress", never)
    monkeypatch.setattr(measuring, "original_on_text", never)
    again = tuning.prove(Bound("share", 0.55))
    assert again == proof
    assert not list(tuning.trials.glob(f"{measuring.PACKING}*"))


def test_another_text_is_another_trial(
    proof: Proof, tuning: Tuning, tmp_path: Path, tiny_text: str
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(tiny_text[::-1], encoding="utf-8")
    files = measuring.Measuring(
        open_checkpoint(tuning.original), "c", tuning.trials, tuning.setting
    ).files
    moved = measuring.Measuring(
        open_checkpoint(tuning.original), "c", tuning.trials, Setting(other, **SIZES)
    ).files
    assert files.name("name: x") != moved.name("name: x")
    assert files.name("name: x") != files.name("name: y")


def test_a_kl_is_kept_to_with_few_bytes(tuning: Tuning, proof: Proof) -> None:
    kls = sorted(trial.measured.kl for trial in proof.trials)
    bound = Bound("kl", kls[len(kls) // 2])
    by_kl = tuning.prove(bound)
    assert by_kl.best is not None
    best = by_kl.trials[by_kl.best]
    assert best.measured.kl <= bound.most
    assert best.measured.nbytes == min(t.measured.nbytes for t in by_kl.trials if t.keeps)
    assert all(trial.keeps == (trial.measured.kl <= bound.most) for trial in by_kl.trials)


def test_what_cannot_be_met_is_said_before_anything_is_measured(tuning: Tuning) -> None:
    with pytest.raises(RecipeError, match="least"):
        tuning.prove(Bound("share", 0.001))


@pytest.fixture
def workspace(tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """With scores."""
    monkeypatch.setenv("DERS_ROOTS", str(tuning.original.parents[2]))
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(tuning.calibration.parent / "scores", workspace.scores)
    return workspace


def done_job(workspace: Workspace, tuning: Tuning, kind: str, **wishes: Any) -> Job:
    """A job that measures what was tuned, after its work."""
    spec = {
        "checkpoint": str(tuning.original),
        "calibration": str(tuning.calibration),
        "device": "cpu",
        "max_tokens": 300,
    }
    number = JobStore(workspace.store_path).submit(kind, spec | wishes, kind).id
    run_worker(workspace, stop_when_idle=True)
    job = JobStore(workspace.store_path).get(number)
    assert (job.state, job.error) == ("done", None)
    return job


def test_the_job_proves_with_scores_of_the_workspace(
    tuning: Tuning, text_file: Path, workspace: Workspace
) -> None:
    job = done_job(workspace, tuning, "prove", text={"mill": str(text_file)}, budget="55%")
    result = ProveResult.of(job)
    assert result is not None
    assert result.best is not None
    best = result.trials[result.best]
    assert best.keeps
    assert best.measured.kl == min(t.measured.kl for t in result.trials if t.keeps)
    assert best.measured.quality.domains[0].name == "mill"
    assert best.measured.nbytes <= 0.55 * result.bytes_before


def test_a_series_is_a_job_whose_trials_are_used_again(
    tuning: Tuning, text_file: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = done_job(workspace, tuning, "series", text=str(text_file), points=2)
    result = SeriesResult.of(job)
    assert result is not None
    small, *_, large = result.tuned
    assert small.measured.nbytes < large.measured.nbytes < result.bytes_before
    assert small.measured.kl > large.measured.kl > 0

    monkeypatch.setattr(measuring, "compress", None)  # nothing is measured again
    (trials,) = workspace.path.rglob("trials")
    again = series(
        open_checkpoint(tuning.original),
        tuning.scores,
        tuning.calibration,
        trials,
        Setting(text_file, max_tokens=300),
        points=2,
    )
    assert (again.tuned, again.uniform) == (result.tuned, result.uniform)


def test_tune_draws_a_series_too(
    tuning: Tuning, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERS_CACHE", str(tuning.calibration.parent))
    sizes = series_module._sizes
    monkeypatch.setattr(series_module, "_sizes", lambda scores, points: sizes(scores, 2))
    words = ["tune", tuning.original, "--budget", "55%", "--calibration", tuning.calibration]
    recipe, page = tmp_path / "r.yaml", tmp_path / "sizes.html"
    words += ["-o", recipe, "--pareto", page, "--device", "cpu", "--json"]
    assert "--heldout" in error_of(ders(*words))
    nowhere = tmp_path / "nowhere.txt"
    assert str(nowhere) in error_of(ders(*words, "--heldout", nowhere))
    for other in (recipe, recipe.with_suffix(".trials"), page.with_suffix(".trials")):
        clashing = [other if word == page else word for word in words]
        assert "differ" in error_of(ders(*clashing, "--heldout", text_file)), other
    assert not list(tmp_path.iterdir())
    done = ders(*words, "--heldout", f"mill={text_file}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["series"]
    drawn = page.read_text(encoding="utf-8")
    assert len(found["tuned"]) >= 2
    for trial in (*found["tuned"], *found["uniform"]):
        assert trial["measured"]["quality"]["domains"][0]["name"] == "mill"
        assert KL.text(trial["measured"]["quality"]["kl"]) in drawn
    kept = list((tmp_path / "sizes.trials").glob("*.json"))
    assert len(kept) == len(found["tuned"]) + len(found["uniform"])
    assert recipe.exists()

    page.unlink()  # as if it had been interrupted
    monkeypatch.setattr(measuring, "compress", None)  # nothing is measured again
    renamed = [recipe.with_stem("other") if word == recipe else word for word in words]
    again = ders(*renamed, "--heldout", f"mill={text_file}")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["series"] == found
