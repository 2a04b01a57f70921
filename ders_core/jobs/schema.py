"""The job store's file: SQLite with a write-ahead log, opened for one short transaction each."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from ders_core.errors import JobError, StoreUnavailable
from ders_core.files.missing import printable
from ders_core.files.private import close_file, private_directory, private_file

BUSY_SECONDS = 20.0

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        title TEXT NOT NULL,
        spec TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued'
            CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
        done INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0,
        message TEXT NOT NULL DEFAULT '',
        step TEXT NOT NULL DEFAULT '',
        steps TEXT NOT NULL DEFAULT '[]',
        result TEXT,
        error TEXT,
        created REAL NOT NULL,
        started REAL,
        finished REAL,
        attempt INTEGER NOT NULL DEFAULT 0,
        losses INTEGER NOT NULL DEFAULT 0,
        device TEXT,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        worker TEXT,
        peak_memory INTEGER NOT NULL DEFAULT 0,
        samples TEXT NOT NULL DEFAULT '[]'
    );
    CREATE INDEX jobs_by_state ON jobs (state, id);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id INTEGER NOT NULL,
        time REAL NOT NULL,
        level TEXT NOT NULL,
        message TEXT NOT NULL
    );
    CREATE INDEX events_by_job ON events (job_id, seq);
    CREATE TABLE workers (
        id TEXT PRIMARY KEY,
        pid INTEGER NOT NULL,
        host TEXT NOT NULL,
        started REAL NOT NULL,
        heartbeat REAL NOT NULL,
        job_id INTEGER,
        devices TEXT NOT NULL DEFAULT '[]',
        memory INTEGER NOT NULL DEFAULT 0,
        cpu REAL NOT NULL DEFAULT 0,
        companion INTEGER
    );
    """,
    """
    ALTER TABLE jobs ADD COLUMN deaths TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE workers ADD COLUMN ended INTEGER;
    ALTER TABLE workers ADD COLUMN oom_kills INTEGER;
    """,
    """
    ALTER TABLE jobs ADD COLUMN kl REAL;
    ALTER TABLE jobs ADD COLUMN size INTEGER;
    CREATE TRIGGER jobs_filed AFTER INSERT ON jobs WHEN new.result IS NOT NULL BEGIN
        UPDATE jobs SET result = new.result WHERE id = new.id;
    END;
    CREATE TRIGGER jobs_figures AFTER UPDATE OF result ON jobs BEGIN
        UPDATE jobs SET
            kl = CASE WHEN json_valid(result) THEN json_extract(result, '$.quality.kl') END,
            size = CASE WHEN json_valid(result) THEN json_extract(result, '$.bytes_after') END
        WHERE id = new.id;
    END;
    UPDATE jobs SET result = result WHERE result IS NOT NULL;
    CREATE INDEX jobs_of_kind ON jobs (kind, id, state, title);
    CREATE INDEX jobs_by_title ON jobs (kind, title COLLATE NOCASE, state);
    CREATE INDEX jobs_by_kl ON jobs (kind, kl, state, title);
    CREATE INDEX jobs_by_size ON jobs (kind, size, state, title);
    CREATE INDEX jobs_by_checkpoint ON jobs (
        kind, CASE WHEN json_valid(spec) THEN json_extract(spec, '$.checkpoint') END
    );
    CREATE INDEX jobs_by_name ON jobs (
        kind, CASE WHEN json_valid(spec) THEN json_extract(spec, '$.name') END
    );
    """,
    """
    CREATE INDEX jobs_by_kind_and_state ON jobs (kind, state);
    """,
    """
    ALTER TABLE jobs ADD COLUMN tags TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT '';
    DROP INDEX jobs_of_kind;
    DROP INDEX jobs_by_title;
    DROP INDEX jobs_by_kl;
    DROP INDEX jobs_by_size;
    CREATE INDEX jobs_of_kind ON jobs (kind, id, state, title, tags);
    CREATE INDEX jobs_by_title ON jobs (kind, title COLLATE NOCASE, state, tags);
    CREATE INDEX jobs_by_kl ON jobs (kind, kl, state, title, tags);
    CREATE INDEX jobs_by_size ON jobs (kind, size, state, title, tags);
    """,
    "ALTER TABLE workers DROP COLUMN devices;",
    "ALTER TABLE jobs ADD COLUMN filed_by TEXT NOT NULL DEFAULT '';",
)
"""Migration n brings a file of `user_version` n to n + 1. `ders_core.jobs.which` repeats what its
indexes hold, word for word, so that they are used. kl and size: of the result, for sorting; NULL
where it has none, or is no JSON (Python writes NaN into it)."""


PASSING = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_IOERR: "its disk is full or fails",
    sqlite3.SQLITE_READONLY: "make its disk writable",
    sqlite3.SQLITE_CANTOPEN: "its disk is full, or the workspace was removed",
    sqlite3.SQLITE_BUSY: "another process holds it for long",
    sqlite3.SQLITE_LOCKED: "another process holds it for long",
}
"""Errors of SQLite after which the store may be used again, and what to do about each."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it if the process dies."""
    private_file(path)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def one_at_a_time(path: Path, refusal: str) -> Iterator[None]:
    """As `file_lock`. refusal: what cannot be done without the lock, for the JobError that is
    raised if it cannot be held."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path))
        except OSError as error:
            raise JobError(f"{refusal}: {path}: {error.strerror}") from error
        yield


def prepare(path: Path) -> None:
    """Create the file, or migrate an older one; its directory and it are closed to other users.

    Raises JobError if it cannot be created, is not a job store, or was written by a newer version.
    """
    try:
        private_directory(path.parent)
        private_file(path)
        for companion in ("-wal", "-shm"):  # SQLite gives new ones the mode of the file
            close_file(path.with_name(path.name + companion))
        with file_lock(path.with_name(f".{path.name}.lock")), connection(path) as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > len(MIGRATIONS):
                raise JobError(
                    f"the job store {path} was made by a newer version (it says {version}, this "
                    f"one knows {len(MIGRATIONS)}); update, or choose another workspace"
                )
            if version < len(MIGRATIONS):
                db.execute("PRAGMA journal_mode = WAL").fetchall()
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
    except OSError as error:
        raise JobError(
            f"the workspace {printable(path.parent)} cannot be used: {error.strerror}; choose "
            "another one"
        ) from error


@contextmanager
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that is closed at the end; each statement commits by itself.

    Raises StoreUnavailable for an SQLite error that may pass (a full or failing disk, a lock held
    for too long), JobError for any other: the file is no job store, or damaged.
    """
    try:
        with closing(
            sqlite3.connect(
                f"{path.as_uri()}?mode=rwc", BUSY_SECONDS, isolation_level=None, uri=True
            )
        ) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous = NORMAL")
            yield db
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its details
        reason = PASSING.get(code)
        if reason is None:
            raise JobError(f"the job store {path} cannot be used: {error}") from error
        raise StoreUnavailable(f"the job store {path} cannot be used: {error}; {reason}") from error


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection inside one write transaction; an exception in the block rolls it back."""
    with connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            if db.in_transaction:  # a full disk ends it by itself
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def log_event(db: sqlite3.Connection, job_id: int, level: str, message: str) -> None:
    """Add a line to a job's log, within the open transaction."""
    db.execute(
        "INSERT INTO events (job_id, time, level, message) VALUES (?, ?, ?, ?)",
        (job_id, time.time(), level, message),
    )
