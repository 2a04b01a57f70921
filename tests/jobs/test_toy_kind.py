"""A kind of job from outside the package is one class: filed, done, and read like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field
from support.messages import raises_saying

from ders_core.errors import JobError
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.context import TaskContext
from ders_core.jobs.kind import KINDS, Kind, Result, Spec
from ders_core.jobs.testing import KindTests
from ders_core.jobs.worker import run_worker


class CountSpec(Spec):
    """Count the words of a text."""

    text: str
    least: int = Field(default=1, ge=1)


class CountResult(Result):
    """words: at least `least` letters long."""

    words: int
    longest: str = ""


class Count(Kind[CountSpec, CountResult]):
    """Count words, and write them down."""

    name = "count"
    steps = ("count", "write")
    spec = CountSpec
    result = CountResult

    def title(self, spec: CountSpec) -> str:
        return f"Count the words of {Path(spec.text).name}"

    def run(self, context: TaskContext, spec: CountSpec) -> CountResult:
        text = context.allowed(spec.text).read_text(encoding="utf-8")
        words = [word for word in text.split() if len(word) >= spec.least]
        counted = context.step("count", lambda: {"words": len(words)})
        longest = max(words, key=len, default="")
        (context.directory() / "longest.txt").write_text(longest, encoding="utf-8")
        context.skip("write", "it is written already")
        return CountResult(longest=longest, **counted)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    KINDS.register(Count)
    yield
    KINDS.unregister("count")


def test_from_the_queue_to_a_typed_result(
    workspace: Workspace, store: JobStore, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one three a fifteen", encoding="utf-8")
    filed = store.submit("count", {"text": str(text), "least": 3})
    assert (filed.title, filed.state) == ("Count the words of text.txt", "queued")
    assert CountResult.of(filed) is None
    run_worker(workspace, stop_when_idle=True)
    job = store.get(filed.id)
    assert (job.state, job.error) == ("done", None)
    assert [(step.name, step.state) for step in job.steps] == [
        ("count", "done"),
        ("write", "skipped"),
    ]
    assert CountResult.of(job) == CountResult(words=3, longest="fifteen")
    assert (workspace.run_dir(job.id) / "longest.txt").read_text("utf-8") == "fifteen"


def test_what_it_raises_is_the_jobs_error(workspace: Workspace, store: JobStore) -> None:
    number = store.submit("count", {"text": "/proc/version"}, "outside").id
    run_worker(workspace, stop_when_idle=True)
    assert "/proc/version" in (store.get(number).error or "")
    assert "DERS_ROOTS" in (store.get(number).error or "")


def test_a_result_that_cannot_be_read_is_named(store: JobStore, workspace: Workspace) -> None:
    from ders_core.jobs.claims import Claims

    number = store.submit("count", {"text": "x"}).id
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete({"wordz": 3})
    with raises_saying(JobError, f"job {number} ", "'words'"):
        CountResult.of(store.get(number))


def test_a_worker_without_the_kind_says_so(workspace: Workspace, store: JobStore) -> None:
    number = store.submit("count", {"text": "x"}).id
    KINDS.unregister("count")
    try:
        run_worker(workspace, stop_when_idle=True)
    finally:
        KINDS.register(Count)
    assert "'count'" in (store.get(number).error or "")
    with raises_saying(JobError, "'counts'", ", count,"):
        store.submit("counts", {})


class TestCount(KindTests):
    """It inherits the tests of every kind."""

    kind = Count()
    parameters = {"text": "/t.txt"}  # noqa: RUF012
    results = ({"words": 3, "longest": "fifteen"}, {"words": 3})

    def test_pages_import_the_file_without_heavy_packages(self) -> None:
        """This test's own file imports what it likes."""
