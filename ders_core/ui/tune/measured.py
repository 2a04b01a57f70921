"""What was measured of the open checkpoint: its runs, the trials of proofs and series, and the
sizes of pilots."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ders_core.checkpoint import Checkpoint
from ders_core.errors import JobError
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.pilot import PilotResult
from ders_core.jobs.kinds.prove import ProveResult
from ders_core.jobs.kinds.series import SeriesResult
from ders_core.later import pd
from ders_core.pipeline.quality import KL, KL_HIGH, KL_LOW
from ders_core.tune.pilot.outcome import Point
from ders_core.tune.trials import Trial
from ders_core.ui import runs, session

COLUMNS = ("name", "role", "share", "kl", "low", "high", "recipe")


def measured(source: Checkpoint) -> pd.DataFrame:
    """A row for each of the newest: `name`, `role` (run, tuned or uniform), `share` of the
    original, `kl` in nats a token, the interval from `low` to `high`, NaN where there is none, and
    the `recipe` as YAML."""
    found = pd.concat([_runs(source), _trials(source)], ignore_index=True)
    return found.astype(dict.fromkeys(COLUMNS[2:6], float)).dropna(subset=["kl"])


def _runs(source: Checkpoint) -> pd.DataFrame:
    which = Which(("run",), ("done",), checkpoint=str(source.path))
    jobs = session.job_store().page(which)
    recipes = {job.id: str(job.spec["recipe"]) for job in jobs}
    names = {"ratio": "share", KL.key: "kl", KL_LOW.key: "low", KL_HIGH.key: "high"}
    table = runs.finished(jobs).rename(columns=names).reindex(columns=["id", *COLUMNS])
    return table.assign(role="run", recipe=table["id"].map(recipes))[list(COLUMNS)]


def _trials(source: Checkpoint) -> pd.DataFrame:
    rows = []
    which = Which(("prove", "series", "pilot"), ("done",), checkpoint=str(source.path))
    for job in session.job_store().page(which):
        with suppress(JobError):  # written by another version
            trials, bytes_before = _of_job(job)
            for role, trial in trials:
                found, quality = trial.measured, trial.measured.quality
                share = found.nbytes / bytes_before
                name = f"{job.title}, {trial.label}"
                interval = quality.kl_low, quality.kl_high
                rows.append((name, role, share, found.kl, *interval, trial.recipe))
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_job(job: Job) -> tuple[Sequence[tuple[str, Trial | Point]], int]:
    """What a finished job measured, with its role, and the bytes of the original."""
    if job.kind == "pilot":
        tried = PilotResult.of(job)
        assert tried is not None, "the job is done"
        return [("tuned", point) for point in tried.pilot.points], tried.pilot.bytes_total
    if job.kind == "series":
        sizes = SeriesResult.of(job)
        assert sizes is not None, "the job is done"
        return _with_roles((*sizes.tuned, *sizes.uniform)), sizes.bytes_before
    proof = ProveResult.of(job)
    assert proof is not None, "the job is done"
    return _with_roles(proof.trials), proof.bytes_before


def _with_roles(trials: Sequence[Trial]) -> list[tuple[str, Trial]]:
    return [(trial.role, trial) for trial in trials]
