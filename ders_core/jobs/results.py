"""Results that several kinds of job share: a packed checkpoint that was written and verified."""

from __future__ import annotations

from ders_core.errors import JobError
from ders_core.jobs.job import Job
from ders_core.jobs.kind import KINDS, Result
from ders_core.pipeline.quality import Quality
from ders_core.pipeline.report import Outlook


class VerifiedGroup(Result):
    """The error of one group: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ over its experts. gain, noise: a and
    ‖E‖/‖Δ‖ of Δ̂ = aΔ + E with E ⟂ Δ; None in results of earlier versions."""

    layer: int
    projection: str
    rel_error_delta: float
    rel_error_weight: float
    gain: float | None = None
    noise: float | None = None


class Verified(Result):
    """The result of `verify`. problems: sentences; groups: empty without an original to compare."""

    ok: bool
    problems: tuple[str, ...] = ()
    tensors: int = 0
    groups: tuple[VerifiedGroup, ...] = ()


class PackedResult(Result):
    """A job that left a packed checkpoint, which can be opened and exported.

    packed: its directory. bytes_before, bytes_after: of the weight files in the original layout and
    packed. ratio: bytes_after / bytes_before. device: where it was computed.
    """

    packed: str
    verification: Verified | None = None
    bytes_before: int
    bytes_after: int
    ratio: float
    device: str

    @property
    def measured(self) -> Quality | None:
        """The quality of the packed checkpoint, if the job measured it."""
        return None

    @property
    def outlook(self) -> Outlook:
        """Predicted KL, gain and noise, as far as the job knows them."""
        return Outlook()


def packed_kinds() -> tuple[str, ...]:
    """The kinds of job that leave a packed checkpoint."""
    return tuple(name for name, kind in KINDS.items() if issubclass(kind.result, PackedResult))


def packed_result(job: Job) -> PackedResult | None:
    """The packed checkpoint of a finished job.

    None if the job is not done, its kind makes none, or another version wrote an unreadable result.
    """
    kind = KINDS.get(job.kind)
    if kind is None or not issubclass(kind.result, PackedResult):
        return None
    try:
        return kind.result.of(job)
    except JobError:
        return None
