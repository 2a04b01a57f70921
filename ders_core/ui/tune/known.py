"""The calibrations of the open checkpoint that the workspace knows, and the scores made with them.

Scores are read as they were saved; nothing is encoded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.files.stamp import Stamp, stamp
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.calibrate import CalibrateResult
from ders_core.jobs.kinds.tune import TuneResult
from ders_core.pipeline.calibration import Calibration
from ders_core.tune.earlier import calibration_digest, earlier_scores
from ders_core.tune.scores import Scores, scores_file
from ders_core.ui import session
from ders_core.ui.calculator import calculate
from ders_core.units import listed


@dataclass(frozen=True)
class Known:
    """A calibration with gradients. scores: None until it was scored with. version: names the
    scores in caches."""

    calibration: Calibration
    scores: Scores | None
    version: str

    @property
    def label(self) -> str:
        """Its texts, and how many tokens it read. Not for Markdown."""
        read = f"{self.calibration.tokens} tokens"
        texts = self.calibration.texts
        return f"{read} of {listed(texts)}" if texts else read


def known(source: Checkpoint) -> list[Known]:
    """Those that were measured on the open checkpoint as it is now, the newest job's first."""
    found = list[Known]()
    for path in dict.fromkeys(_paths(source)):
        with suppress(DersError, OSError):  # it was removed, or is another checkpoint's
            file = session.workspace().check_allowed(path)
            found.append(_known(source, file))
    return [each for each in found if each.calibration.has_gradients]


def _paths(source: Checkpoint) -> Iterator[str]:
    which = Which(("tune", "calibrate", "prove", "series"), ("done",), checkpoint=str(source.path))
    for job in session.job_store().page(which):
        with suppress(DersError):  # written by another version
            yield _path(job)
    recipe = session.recipe()
    if recipe.calibration is not None:
        yield str(recipe.calibration)


def _path(job: Job) -> str:
    """The calibration that a finished job made or used."""
    if job.kind in ("prove", "series"):
        return str(job.spec["calibration"])
    if job.kind == "tune":
        tuned = TuneResult.of(job)
        assert tuned is not None, "the job is done"
        return tuned.calibration
    calibrated = CalibrateResult.of(job)
    assert calibrated is not None, "the job is done"
    return calibrated.path


def _known(source: Checkpoint, file: Path) -> Known:
    """Raises CheckpointError unless it is a calibration of this checkpoint, OSError if it is not
    there."""
    before = stamp(file)
    calibration, digest = _calibration(str(file), before, source.store.version, source)
    place = scores_file(session.workspace().scores, source.identity, digest, per_expert=False)
    if not place.is_file():
        return Known(calibration, None, "")
    written = stamp(place)
    version = f"{place.name} {written}"
    return Known(
        calibration, _scores(version, source.store.version, source, calibration, digest), version
    )


@st.cache_resource(show_spinner="Reading a calibration", max_entries=32)
def _calibration(
    path: str, stamp: Stamp, version: str, _source: Checkpoint
) -> tuple[Calibration, str]:
    """A calibration of this checkpoint, and the SHA-256 of its file. Raises CheckpointError."""
    calibration = Calibration.open(path)
    calibration.check(_source)
    # once for each version of the file, and beside the app, which must not wait
    return calibration, calculate(calibration_digest, Path(path))


@st.cache_resource(show_spinner="Reading scores", max_entries=4)
def _scores(
    scores_version: str, version: str, _source: Checkpoint, _calibration: Calibration, digest: str
) -> Scores | None:
    place = scores_file(session.workspace().scores, _source.identity, digest, per_expert=False)
    return earlier_scores(place, _source, digest, _calibration)
