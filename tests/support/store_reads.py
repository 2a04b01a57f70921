"""What is read of job stores, counted."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import Any

import pytest

from ders_core.jobs import store
from ders_core.jobs.job import job_of

STEPS = 1000
"""Steps of SQLite's machine between two counts."""


class Reads:
    """What was read of job stores. rows: that left SQLite; steps: thousands of its machine's."""

    def __init__(self) -> None:
        self.rows = self.steps = self.parsed = 0

    def step(self) -> None:
        self.steps += 1


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Counts from now on."""
    reads = Reads()

    class Cursor(sqlite3.Cursor):
        def fetchall(self) -> list[Any]:
            rows = super().fetchall()
            reads.rows += len(rows)
            return rows

        def fetchone(self) -> Any:
            row = super().fetchone()
            reads.rows += row is not None
            return row

    class Connection(sqlite3.Connection):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            self.set_progress_handler(reads.step, STEPS)

        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    def counted(row: sqlite3.Row) -> Any:
        reads.parsed += 1
        return job_of(row)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Connection))
    monkeypatch.setattr(store, "job_of", counted)
    return reads
