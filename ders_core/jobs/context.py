"""What a kind of job works with: directory, allowed paths, device, progress, log, steps, engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ders_core.errors import Cancelled, CheckpointError, StoreUnavailable
from ders_core.files.aside import sweep_asides
from ders_core.files.json_object import read_json
from ders_core.files.place_errors import writing
from ders_core.files.texts import check_texts
from ders_core.files.writer import write_json
from ders_core.jobs.claims import Claim
from ders_core.jobs.engine import Engine
from ders_core.jobs.job import Job, StepState
from ders_core.jobs.pace import Sample, add_sample
from ders_core.jobs.stop import Stop
from ders_core.jobs.workspace import Workspace

if TYPE_CHECKING:
    from ders_core.files.named_texts import NamedTexts
    from ders_core.jobs.kind import TextSpec

WRITE_EVERY = 0.25
"""Seconds between two accesses to the store; a stop request waits at most so long."""

AGAIN = "then resume this run"
"""What to do about a job's files that could not be written, after the cause is mended."""

LOG_EVERY = 1.0
"""Seconds between two progress messages in the job's log."""


class Released(Cancelled):
    """The worker has to stop; the job goes back into the queue."""


class TaskContext:
    """One attempt at one job. Its methods raise Cancelled (or a subclass) when work has to stop."""

    def __init__(
        self, claim: Claim, workspace: Workspace, scheduler: str | None, stop: Stop
    ) -> None:
        self.job: Job = claim.job
        self.workspace = workspace
        self._claim = claim
        self._scheduler = scheduler
        self._stop = stop
        self._steps = self.job.steps
        self._step = ""
        self._samples: tuple[Sample, ...] = ()
        self._total = 0
        self._message = ""
        self._written = self._logged = float("-inf")

    def allowed(self, path: str) -> Path:
        """A path of the spec. Raises JobError if it is outside the workspace's roots."""
        return self.workspace.check_allowed(path)

    def allowed_texts(self, texts: str | Sequence[str]) -> tuple[Path, ...]:
        """Paths of the spec's texts, which are read once: what cannot be used later is refused now.

        Raises JobError if one is outside the roots, EvaluationError if it is no text.
        """
        names = [texts] if isinstance(texts, str) else texts
        paths = tuple(self.allowed(name) for name in names)
        check_texts(paths)
        return paths

    def allowed_named_texts(self, texts: TextSpec) -> NamedTexts:
        """The same of texts that may have names, which are kept."""
        if not isinstance(texts, dict):
            return self.allowed_texts(texts)
        return {name: self.allowed_texts(paths) for name, paths in texts.items()}

    def checkpoint(self, place: str) -> Path:
        """A checkpoint of the spec, a path or an address.

        Raises JobError if it is not allowed, CheckpointError if an address cannot be understood.
        """
        return self.workspace.check_checkpoint(place)

    def directory(self) -> Path:
        """The job's directory, which is created if it is missing. Raises OutputError."""
        directory = self.workspace.run_dir(self.job.id)
        with writing(directory, AGAIN):
            directory.mkdir(parents=True, exist_ok=True)
        sweep_asides(directory)
        return directory

    def device(self, choice: str) -> str:
        """Choose "cpu" or "cuda"; a resumed job stays on its first device. Raises DersError."""
        from ders_core.compute.device import resolve_device

        device = self.job.device or resolve_device(choice).type
        self._claim.set_device(device)
        return device

    def engine(self, workers: int | None, device: str) -> Engine:
        """What runs independent tasks: this process with so many threads, or the cluster."""
        return Engine(workers, self._scheduler, device)

    def progress(self, done: int, total: int, message: str) -> None:
        """A `Progress` callback that writes to the store at intervals.

        Raises Cancelled on a stop request, and Released if the worker has to stop.
        """
        if self._stop.asked:
            raise Released("the worker is leaving")
        now = time.monotonic()
        if now - self._written < WRITE_EVERY:
            return
        self._written = now
        if total != self._total:  # other units, such as tokens of a text after bytes of weights
            self._total, self._samples = total, ()
        self._samples = add_sample(self._samples, time.time(), done)
        with suppress(StoreUnavailable):  # the work goes on; its end is what must be written
            if self._claim.advance(self._step, done, total, message, self._samples):
                raise Cancelled(f"job {self.job.id} was cancelled")
            if message != self._message and now - self._logged >= LOG_EVERY:
                self._message, self._logged = message, now
                self._claim.log(message)

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the job's log, if the store can be written; level "info", "warning" or
        "debug"."""
        with suppress(StoreUnavailable):
            self._claim.log(message, level)

    def step(
        self, name: str, work: Callable[[], dict[str, Any]], saved: Path | None = None
    ) -> dict[str, Any]:
        """Do one step and return its result, plain JSON values. With `saved`, the result is kept in
        that file, and a later attempt reads it instead of doing the step again."""
        if saved is not None and saved.is_file():
            try:
                result = read_json(saved)
            except CheckpointError:
                saved.unlink()
            else:
                self._mark(name, "done")
                return result
        self._enter(name)
        started = time.monotonic()
        result = work()
        if saved is not None:
            with writing(saved, AGAIN):
                write_json(saved, result)
        self._mark(name, "done", seconds=time.monotonic() - started)
        self.log(f"{name}: done")
        return result

    def skip(self, name: str, note: str) -> None:
        """Skip a step. note: the reason, for the page and the log."""
        self._mark(name, "skipped", note=note)
        self.log(f"{name}: skipped; {note}")

    def _enter(self, name: str) -> None:
        self._mark(name, "running")
        self._step, self._samples, self._message = name, (), f"starting to {name}"
        self.progress(0, 0, self._message)
        self._written = self._logged = float("-inf")  # the next message is written at once

    def _mark(self, name: str, state: StepState, **changes: Any) -> None:
        self._steps = tuple(
            replace(step, state=state, **changes) if step.name == name else step
            for step in self._steps
        )
        assert any(step.name == name for step in self._steps), name
        self._claim.set_steps(self._steps)
