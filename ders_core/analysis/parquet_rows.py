"""Rows of a Parquet file by their numbers; only what is asked for is read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock

from ders_core.errors import CheckpointError
from ders_core.later import pa, pd, pq

ADVICE = "analyse again"

WORDS = frozenset(("projection", "axis"))
COUNTS = frozenset(
    (
        *("layer", "experts", "out", "in", "clusters", "expert", "expert_i", "expert_j"),
        *("cluster", "index", "count", "bin"),
    )
)
"""Columns of words, and of whole numbers; the others hold any numbers."""


class ParquetRows:
    """A file that stays open: what is read is of the file that was opened, whatever takes its
    place. Any number of threads may read.

    Every method raises CheckpointError for what cannot be read.
    """

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        """columns: what is read of it, each of the kind that its name stands for."""
        self.path = path
        self.columns = tuple(columns)
        self._lock = Lock()
        try:
            words = [column for column in self.columns if column in WORDS]
            self._file = pq.ParquetFile(
                pa.OSFile(str(path)), read_dictionary=words, page_checksum_verification=True
            )
            sizes = [
                self._file.metadata.row_group(number).num_rows
                for number in range(self._file.metadata.num_row_groups)
            ]
            fields = {field.name: field.type for field in self._file.schema_arrow}
        except Exception as error:  # pyarrow fails in many ways on a damaged file
            raise _unreadable(path, error) from error
        self._ends = list(accumulate(sizes, initial=0))
        self.count = self._ends[-1]
        for column in self.columns:
            if column not in fields or (self.count and not _is_of_kind(fields[column], column)):
                raise _without(path, column)

    def rows(self, first: int, end: int, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows `first` … `end` − 1, numbered from 0 on. columns: these alone."""
        if end <= first:
            return pd.DataFrame(columns=list(columns or self.columns))
        begin = bisect_right(self._ends, first) - 1
        parts = range(begin, bisect_right(self._ends, end - 1))
        table = self._read(parts, columns or self.columns)
        table = table.slice(first - self._ends[begin], end - first)
        try:
            for number, field in enumerate(table.schema):
                if pa.types.is_dictionary(field.type):
                    plain = table.column(number).cast(field.type.value_type)
                    table = table.set_column(number, field.name, plain)
            rows: pd.DataFrame = table.to_pandas(ignore_metadata=True)
        except Exception as error:
            raise _unreadable(self.path, error) from error
        return rows

    def pieces(self) -> Iterator[tuple[int, pa.Table]]:
        """All rows, piece by piece, with the number of each piece's first row."""
        for part, first in enumerate(self._ends[:-1]):
            yield first, self._read(range(part, part + 1), self.columns)

    def _read(self, parts: Sequence[int], columns: Sequence[str]) -> pa.Table:
        try:
            with self._lock:
                table = self._file.read_row_groups(parts, list(columns), use_threads=False)
            if len(table) != self._ends[parts[-1] + 1] - self._ends[parts[0]]:
                raise ValueError("it has fewer rows than it says")
        except Exception as error:
            raise _unreadable(self.path, error) from error
        for column in columns:
            if column in WORDS | COUNTS and table[column].null_count:
                raise _without(self.path, column)
        return table


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{path} cannot be read: {words}; {ADVICE}")


def _without(path: Path, column: str) -> CheckpointError:
    return CheckpointError(f"{path} has no such column {column!r} as it needs; {ADVICE}")


def _is_of_kind(kind: pa.DataType, column: str) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if column in WORDS:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if pa.types.is_integer(kind):
        return True
    return column not in COUNTS and bool(pa.types.is_floating(kind))
