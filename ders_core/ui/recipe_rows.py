"""Rows of the recipe's table: a row a layer, which opens to a row for each of its projections."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ders_core.errors import CodecError
from ders_core.later import pd
from ders_core.pipeline.plan import Plan
from ders_core.pipeline.quality import GAIN, NOISE

SEVERAL = "several"
"""What a layer's row shows for codecs that differ."""

TICK, OPEN = "tick", "open"
"""Columns: whether the row is set with others, and the button that opens a layer."""

CLOSED, OPENED = "▶", "▼"

ALL_OPEN = 24
"""Groups up to which every layer is open at first."""

Edits = Mapping[int, Mapping[str, Any]]
"""Row of the table -> {column: value}."""


@dataclass(frozen=True)
class Row:
    """numbers: of the plan's entries that it stands for; several for a layer."""

    layer: int
    numbers: tuple[int, ...]

    @property
    def is_layer(self) -> bool:
        return len(self.numbers) > 1

    def is_ticked(self, ticked: Collection[int]) -> bool:
        """ticked: numbers of entries; a layer is ticked if all of its projections are."""
        return set(self.numbers) <= set(ticked)


def open_at_first(plan: Plan) -> set[int]:
    """Layers whose projections are shown until a person opens or closes one."""
    layers = {entry.layer for entry in plan.entries}
    return layers if len(plan.entries) <= ALL_OPEN else set()


def rows_of(plan: Plan, opened: Collection[int]) -> list[Row]:
    """In the plan's order; a layer of one projection has the row of that alone."""
    numbers: dict[int, list[int]] = {}
    for number, entry in enumerate(plan.entries):
        numbers.setdefault(entry.layer, []).append(number)
    rows = []
    for layer, mine in numbers.items():
        if len(mine) > 1:
            rows.append(Row(layer, tuple(mine)))
        if len(mine) == 1 or layer in opened:
            rows += [Row(layer, (number,)) for number in mine]
    return rows


def folded(
    table: pd.DataFrame, rows: Sequence[Row], opened: Collection[int], ticked: Collection[int]
) -> pd.DataFrame:
    """What is shown of `ders_core.ui.recipe_table.table`: sums of bytes, means of gain and noise
    over the groups that have one, and what all projections of a layer have in common. ticked:
    numbers of entries."""
    columns = {name: table[name].tolist() for name in table.columns}  # quick to pick from
    shown = []
    for row in rows:
        mine = {
            name: [values[number] for number in row.numbers] for name, values in columns.items()
        }
        before, after = sum(mine["before"]), sum(mine["after"])
        codecs, names = set(mine["codec"]), mine["projection"]
        strengths = {value for value in mine["strength"] if not pd.isna(value)}
        is_one = len(codecs) == 1 and all(value in strengths for value in mine["strength"])
        button = (OPENED if row.layer in opened else CLOSED) if row.is_layer else None
        shown.append(
            {
                TICK: row.is_ticked(ticked),
                OPEN: button,
                "layer": row.layer,
                "projection": f"all {len(names)}" if row.is_layer else names[0],
                "codec": mine["codec"][0] if len(codecs) == 1 else SEVERAL,
                "strength": strengths.pop() if is_one and len(strengths) == 1 else None,
                "before": before,
                "after": after,
                "share": 100 * after / before,
                **{key: _mean(mine[key]) for key in (GAIN.key, NOISE.key)},
            }
        )
    return pd.DataFrame(shown)


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are known; NaN if none is."""
    known = [value for value in values if not pd.isna(value)]
    return sum(known) / len(known) if known else math.nan


def entry_edits(
    shown: pd.DataFrame, rows: Sequence[Row], edits: Edits
) -> dict[int, dict[str, Any]]:
    """Edits of the plan's entries; those of a layer are edits of its projections.

    Raises CodecError for one strength of several codecs.
    """
    entries: dict[int, dict[str, Any]] = {}
    for number, edit in edits.items():
        changed = {column: value for column, value in edit.items() if column != TICK}
        if not changed:
            continue
        row = rows[number]
        codec = changed.get("codec", shown["codec"].iloc[number])
        if codec == SEVERAL:
            if "strength" in changed:
                raise CodecError(
                    f"layer {row.layer} has several codecs, which count strength in units of their "
                    "own; choose one codec, or open the layer"
                )
            continue
        for entry in row.numbers:
            entries.setdefault(entry, {}).update(changed)
    return entries


def ticks_after(rows: Sequence[Row], ticked: Collection[int], edits: Edits) -> set[int]:
    """Numbers of the entries that are ticked after the edits; entries of rows whose tick did not
    change stay as they are. ticked: numbers before."""
    after = set(ticked)
    for number, tick in sorted(_ticks(edits).items()):
        row = rows[number]
        if tick == row.is_ticked(ticked):
            continue
        after = after | set(row.numbers) if tick else after - set(row.numbers)
    return after


def shows_other_ticks(rows: Sequence[Row], ticked: Collection[int], edits: Edits) -> bool:
    """Whether a row that was edited shows another tick than its entries have: a later edit, of its
    layer or of a projection, changed them. ticked: numbers of entries."""
    return any(tick != rows[number].is_ticked(ticked) for number, tick in _ticks(edits).items())


def _ticks(edits: Edits) -> dict[int, bool]:
    """Row -> its tick, of the rows whose tick was edited."""
    return {number: bool(edit[TICK]) for number, edit in edits.items() if TICK in edit}
