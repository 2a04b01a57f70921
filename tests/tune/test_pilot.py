"""A whole pilot of a tiny model: what is measured, kept, and shown."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.evaluate_support import measure
from support.fatal_changes import run
from support.shell import ders

from ders_core.codecs import CODECS
from ders_core.errors import OutputError
from ders_core.figures.pilot import pilot_html
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.kinds.pilot import PilotResult
from ders_core.jobs.worker import run_worker
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe
from ders_core.tune import measuring
from ders_core.tune.measuring import PACKING, Setting
from ders_core.tune.pilot import run as module
from ders_core.tune.pilot.outcome import Pilot
from ders_core.tune.pilot.run import TEXTS, TRIALS, Wishes, pilot
from ders_core.tune.trials import TrialFiles
from ders_core.units import number_text

FORMS = ("quantized", "lossless", "keep")
"""All forms would take a minute to score."""

HOSTILE = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Done:
    original: Path
    directory: Path
    wishes: Wishes
    found: Pilot

    def again(self, wishes: Wishes | None = None) -> Pilot:
        return pilot(open_checkpoint(self.original), self.directory, wishes or self.wishes)


@pytest.fixture(scope="module")
def done(pair: Any, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Done:
    place = tmp_path_factory.mktemp("pilot")
    text = place / "text.txt"
    text.write_text(tiny_text + tiny_text[::-1], encoding="utf-8")  # lines come again backwards
    setting = Setting(text, max_tokens=310, window=32, batch=10)
    wishes = Wishes(setting, prompts=("The mill", HOSTILE), tokens=400)
    with pytest.MonkeyPatch.context() as patch:
        some = {name: CODECS[name] for name in FORMS}
        patch.setattr("ders_core.tune.candidates.CODECS", some)
        found = pilot(open_checkpoint(pair.original), place / "work", wishes)
    return Done(pair.original, place / "work", wishes, found)


def test_points_are_measured_on_the_part_that_calibration_never_saw(
    done: Done, tmp_path: Path
) -> None:
    assert len(done.found.points) >= 2
    point = done.found.points[-1]
    heldout = done.directory / TEXTS / "heldout-1.txt"
    report = compress(done.original, tmp_path / "packed", Recipe.from_yaml(point.recipe))
    assert report.bytes_after == point.measured.nbytes
    quality = measure(tmp_path / "packed", done.original, heldout, batch=10)
    assert quality.kl == pytest.approx(point.measured.kl, rel=1e-6)
    first = (done.directory / TEXTS / "calibration.txt").read_text(encoding="utf-8")
    whole = Path(str(done.wishes.setting.text)).read_text(encoding="utf-8")
    assert first + heldout.read_text(encoding="utf-8") == whole
    calibration = Calibration.open(done.found.calibration)
    assert calibration.seen.digests
    assert calibration.has_each, "moments of each expert's inputs are small here"
    assert not list((done.directory / TRIALS).glob(f"{PACKING}*"))


def test_a_second_pilot_does_nothing_twice(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        pytest.fail("it was done before")

    for name in ("analyze", "calibrate", "continuations"):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("ders_core.tune.measuring.compress", never)
    monkeypatch.setattr(module, "score", lambda *args, **options: _scores(done))
    assert done.again() == done.found


def _scores(done: Done) -> Any:
    from ders_core.tune.saved import load_scores

    (file,) = (done.directory / module.SCORES).glob("*.json")
    return load_scores(file)


def test_what_was_lost_is_made_again(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between two measurements: one is gone, and the answers of one."""
    monkeypatch.setattr(module, "score", lambda *args, **options: _scores(done))
    trials = done.directory / TRIALS
    measured = [file for file in trials.glob("*.json") if not file.name.startswith("answers")]
    measured[0].unlink()
    next(trials.glob("answers-*.json")).unlink()
    again = done.again()
    assert [point.answers for point in again.points] == [p.answers for p in done.found.points]
    assert [point.measured.kl for point in again.points] == pytest.approx(
        [point.measured.kl for point in done.found.points], rel=1e-6
    )


def _logged(log: Path, *, dies: bool) -> None:
    """From now on a line tells of each recipe that is compressed, and of each that is measured.
    dies: whether SIGKILL ends the process when the first measurement was kept."""
    kept: Callable[..., Any] = TrialFiles.write

    def compress_and_tell(path: Path, out: Path, recipe: Recipe, **options: Any) -> Any:
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"compressed {recipe.name}\n")
        return compress(path, out, recipe, **options)

    def keep_and_tell(self: TrialFiles, recipe: str, measurement: Any) -> None:
        kept(self, recipe, measurement)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"measured {Recipe.from_yaml(recipe).name}\n")
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    measuring.compress = cast(Any, compress_and_tell)  # type: ignore[attr-defined]
    TrialFiles.write = keep_and_tell  # type: ignore[method-assign]


def _pilot_in_a_process(
    original: Path, directory: Path, wishes: Wishes, log: Path, dies: bool
) -> None:
    _logged(log, dies=dies)
    found = pilot(open_checkpoint(original), directory, wishes)
    directory.with_name("found.json").write_text(_without_seconds(found), encoding="utf-8")


def _without_seconds(found: Pilot) -> str:
    return re.sub(r'"seconds":[0-9.e-]+', '"seconds":0', found.model_dump_json())


def test_a_killed_pilot_goes_on(done: Done, tmp_path: Path) -> None:
    place, log = tmp_path / "place", tmp_path / "log.txt"
    shutil.copytree(done.directory, place / "work", ignore=shutil.ignore_patterns(TRIALS))
    given = done.original, place / "work", done.wishes, log
    killed = run(_pilot_in_a_process, *given, True, place=place)
    assert killed.killed, killed.printed
    names = [Recipe.from_yaml(point.recipe).name for point in done.found.points]
    assert log.read_text().split("\n")[:-1] == [f"compressed {names[0]}", f"measured {names[0]}"]
    left = list((place / "work" / TRIALS).glob(f"{PACKING}*"))
    assert left, "it died before the packed checkpoint was removed"
    again = run(_pilot_in_a_process, *given, False, place=place)
    assert again.status == 0, again.printed
    assert sorted(log.read_text().split("\n")[:-1]) == sorted(
        [f"{what} {name}" for what in ("compressed", "measured") for name in names]
    )
    assert not list((place / "work" / TRIALS).glob(f"{PACKING}*"))
    found = (place / "found.json").read_text(encoding="utf-8")
    expected = _without_seconds(done.found)
    assert found == expected.replace(str(done.directory), str(place / "work"))


def test_a_directory_of_another_pilot_is_refused(done: Done) -> None:
    with pytest.raises(OutputError, match="another"):
        done.again(replace(done.wishes, tokens=300))


def test_the_report_stands_alone(done: Done) -> None:
    page = pilot_html(done.found)
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=['\"]?(?:https?:)?//", page)
    assert HOSTILE not in page
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in page
    for point in done.found.points:
        assert number_text(point.measured.kl) in page
    for risk in done.found.risks:
        assert risk.fallback.split(":")[0] in page


def test_the_command_refuses_before_it_works(tmp_path: Path, done: Done) -> None:
    text = str(done.wishes.setting.text)
    for output, said in (("report.txt", ".html"), ("there.html", "exists")):
        (tmp_path / "there.html").write_text("", encoding="utf-8")
        process = ders("pilot", str(done.original), "--text", text, "-o", str(tmp_path / output))
        assert process.returncode == 1
        assert said in process.stderr
        assert len(process.stderr.splitlines()) == 1


def test_the_job_gives_what_a_report_shows(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERS_ROOTS", str(done.original.parents[2]))
    monkeypatch.setattr("ders_core.tune.pilot.run.score", lambda *args, **options: _scores(done))
    monkeypatch.setattr(
        "ders_core.tune.pilot.run.calibrate",
        lambda model, out, **options: out.write_bytes(Path(done.found.calibration).read_bytes()),
    )
    workspace = Workspace(tmp_path / "workspace")
    spec = {
        "checkpoint": str(done.original),
        "text": str(done.wishes.setting.text),
        "heldout": {"backwards": str(done.directory / TEXTS / "heldout-1.txt")},
        "prompts": ["The mill"],
        "device": "cpu",
        "max_tokens": 300,
    }
    number = JobStore(workspace.store_path).submit("pilot", spec, "pilot").id
    run_worker(workspace, stop_when_idle=True)
    job = JobStore(workspace.store_path).get(number)
    assert (job.state, job.error) == ("done", None)
    result = PilotResult.of(job)
    assert result is not None
    assert len(result.pilot.points) >= 2
    assert result.pilot.points[0].measured.quality.domains[0].name == "backwards"
    assert "The mill" in pilot_html(result.pilot)
