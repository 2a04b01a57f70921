"""Names, tags and notes of jobs, and what deleting one frees."""

from __future__ import annotations

import pytest
from support.messages import raises_saying
from support.stored_results import PARAMETERS

from ders_core.errors import JobError
from ders_core.jobs import JobStore, Which, Workspace

RUN = PARAMETERS["run"]


def test_a_job_is_renamed_and_described(store: JobStore) -> None:
    number = store.submit("run", RUN, "first").id
    assert (store.get(number).tags, store.get(number).note) == ((), "")
    told = store.describe(number, " better name ", [" a ", "b  c", "", "a"], " long\nnote ")
    assert told == store.get(number)
    assert (told.title, told.tags, told.note) == ("better name", ("a", "b c"), "long\nnote")
    other = store.submit("run", RUN, "second").id
    assert [job.id for job in store.page(Which(name="B C"))] == [number]
    assert [job.id for job in store.page(Which(name="name"))] == [number]
    assert [job.id for job in store.page(Which(name="second"))] == [other]
    assert store.count(Which(name="a, b")) == 1
    assert store.describe(number, "x").tags == ()


@pytest.mark.parametrize(
    ("title", "tags", "note"),
    [
        ("  ", [], ""),
        ("x" * 201, [], ""),
        ("a\nb", [], ""),
        ("a\u202eb", [], ""),
        ("x", ["a,b"], ""),
        ("x", ["a\x1bb"], ""),
        ("x", ["y" * 10_001], ""),
        ("x", [], "y" * 10_001),
    ],
)
def test_what_cannot_describe_a_job(
    store: JobStore, title: str, tags: list[str], note: str
) -> None:
    number = store.submit("run", RUN, "first").id
    with pytest.raises(JobError):
        store.describe(number, title, tags, note)
    assert (store.get(number).title, store.get(number).tags) == ("first", ())
    with raises_saying(JobError, "no job 99"):
        store.describe(99, "x")


def test_deleting_says_before_what_it_frees(store: JobStore, workspace: Workspace) -> None:
    number = store.submit("run", RUN, "first").id
    assert store.freed_bytes(number) == 0
    directory = workspace.run_dir(number) / "packed"
    directory.mkdir(parents=True)
    (directory / "a").write_bytes(bytes(range(256)) * 400)
    (directory.parent / "b").write_bytes(b"x" * 5000)
    assert store.freed_bytes(number) == 107_400
    store.delete(number)
    assert not directory.parent.exists()
