"""Measure a series of sizes of a checkpoint, tuned by a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Kind, Result
from ders_core.jobs.measured_tuning import MeasuredSpec, MeasuredTuning
from ders_core.jobs.workspace import place_label
from ders_core.tune.cliffs import Cliff
from ders_core.tune.measured_series import Series
from ders_core.tune.trials import Trial

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext

DONE = "done.json"


class SeriesSpec(MeasuredSpec):
    """points: sizes from the smallest to one that loses nothing; more are measured where the KL
    rises steeply."""

    points: int = Field(default=6, ge=1, le=100)


class SeriesResult(Result):
    """tuned, uniform: what was measured, the smallest first. cliffs: between tuned points. factors:
    measured over predicted, of each form."""

    tuned: tuple[Trial, ...]
    uniform: tuple[Trial, ...]
    cliffs: tuple[Cliff, ...] = ()
    factors: dict[str, float] = Field(default_factory=dict)
    bytes_before: int

    @property
    def series(self) -> Series:
        """As figures take it."""
        return Series(self.tuned, self.uniform, self.cliffs, self.factors)


@KINDS.register
class SeriesKind(Kind[SeriesSpec, SeriesResult]):
    """Score, then solve and measure one size after another."""

    name = "series"
    steps = ("score", "series")
    spec = SeriesSpec
    result = SeriesResult

    def title(self, spec: SeriesSpec) -> str:
        return spec.name or f"Sizes of {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: SeriesSpec) -> SeriesResult:
        work = MeasuredTuning.of(context, spec)
        context.step("score", work.scored)

        def measured() -> dict[str, Any]:
            from ders_core.tune.series import series

            inputs = (work.source, work.scores, work.calibration)
            found = series(*inputs, work.trials, work.setting, points=spec.points, **work.wishes)
            return {**found.to_dict(), "bytes_before": work.scores.bytes_total}

        done = context.directory() / DONE
        return SeriesResult.model_validate(context.step("series", measured, done))
