"""The large tables of an analysis, pairs and spectra: read one group at a time, from memory or from
a file.

A model of 100,000 tensors has 25 million pairs of experts. A page shows those of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

from ders_core.analysis.parquet_rows import COUNTS, WORDS, ParquetRows
from ders_core.errors import CheckpointError
from ders_core.later import pa, pd, pq

Key = tuple[int, str]
"""(layer, projection) of a group."""


class GroupTable(Protocol):
    """Rows that belong to groups, those of a group together, in the order of the groups."""

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def empty(self) -> bool:
        """Whether there is no row at all."""

    @property
    def keys(self) -> Sequence[Key]:
        """The groups that have rows, in their order."""

    def of_group(
        self, layer: int, projection: str, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """The rows of one group, numbered from 0 on; none for a group without.

        columns: these alone. Raises CheckpointError if they cannot be read.
        """


class TableInMemory:
    """A table of an analysis that was just made. tables: of each group that has rows."""

    def __init__(self, columns: Sequence[str], tables: Mapping[Key, pd.DataFrame]) -> None:
        self.columns = tuple(columns)
        self._tables = {key: table for key, table in tables.items() if len(table)}

    @classmethod
    def of(cls, table: pd.DataFrame) -> TableInMemory:
        """Of a table with the columns layer and projection, in which each group's rows are
        together."""
        tables: dict[Key, pd.DataFrame] = {}
        for (layer, projection), rows in table.groupby(["layer", "projection"], sort=False):
            tables[int(str(layer)), str(projection)] = rows.reset_index(drop=True)
        return cls(list(table.columns), tables)

    @property
    def empty(self) -> bool:
        return not self._tables

    @property
    def keys(self) -> Sequence[Key]:
        return list(self._tables)

    def of_group(
        self, layer: int, projection: str, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        chosen = list(columns or self.columns)
        rows = self._tables.get((layer, projection))
        return pd.DataFrame(columns=chosen) if rows is None else rows[chosen]


class TableInFile:
    """A table of a saved analysis. The file stays open, so that what is read is what was checked,
    also when another analysis takes its place."""

    def __init__(
        self,
        file: ParquetRows,
        counts: Mapping[Key, int],
        damaged: Callable[[], object] = lambda: None,
    ) -> None:
        """counts: rows of each group, in the order of the file. damaged: is called when rows cannot
        be read."""
        self.columns = file.columns
        self._file = file
        self._damaged = damaged
        ends = accumulate(counts.values(), initial=0)
        self._places = dict(zip(counts, pairwise(ends), strict=True))

    @property
    def empty(self) -> bool:
        return not self._file.count

    @property
    def keys(self) -> Sequence[Key]:
        return [key for key, (first, end) in self._places.items() if end > first]

    def of_group(
        self, layer: int, projection: str, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        try:
            return self._file.rows(*self._places.get((layer, projection), (0, 0)), columns)
        except CheckpointError:
            self._damaged()
            raise


def whole(table: GroupTable) -> pd.DataFrame:
    """All rows of a table."""
    tables = [table.of_group(*key) for key in table.keys]
    return (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=list(table.columns))
    )


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a table as Parquet, so that damage of its values is noticed when they are read."""
    table.to_parquet(file, index=False, write_page_checksum=True)


def write_groups(table: GroupTable, file: Path) -> dict[Key, int]:
    """Write a table as Parquet, the rows of each group as a row group of its own: no more than one
    group is in memory. A table without rows has columns of no type, as pandas writes it.

    Returns how many rows each group has."""
    if table.empty:
        write_table(whole(table), file)
        return {}
    counts = {}
    keys = table.keys
    schema = pa.Table.from_pandas(table.of_group(*keys[0]), preserve_index=False).schema
    repeated = [name for name in schema.names if name in WORDS | COUNTS]
    with (
        open(file, "wb") as output,  # pyarrow removes a file that it cannot write
        pq.ParquetWriter(
            output, schema, use_dictionary=repeated, write_page_checksum=True
        ) as writer,
    ):
        for key in keys:
            rows = pa.Table.from_pandas(table.of_group(*key), schema, preserve_index=False)
            writer.write_table(rows, row_group_size=len(rows))
            counts[key] = len(rows)
    return counts
