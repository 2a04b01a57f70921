"""How many bytes a report of an analysis takes at most, before anything is read."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ders_core.analysis.similarity import BINS
from ders_core.analysis.spectra import POINTS, Spectra
from ders_core.analysis.tables import COLUMNS
from ders_core.checkpoint import PROJECTIONS, ExpertGroup

NUMBER = len(repr(-1.7976931348623157e308))
"""Characters of a number at most."""

WORD = max(map(len, (*PROJECTIONS, "column"))) + len('""')
HEAD = 4096
"""Characters beside the tables: names, versions, the verdict."""

CELL = 3 * 8
"""Bytes of a value in a Parquet file of few rows: in a dictionary, its place there, in the
statistics."""

FOOTER = 1024
"""Bytes that describe one column of a Parquet file."""


def json_bytes(groups: Iterable[ExpertGroup], spectra: Spectra) -> int:
    """At most of `Analysis.to_json`, of an analysis of these groups."""
    total = HEAD
    for group in groups:
        experts, out, width = group.shape
        points = min(POINTS, out, width) if spectra != "none" else 0
        rows = {
            "groups": 1,
            "similarity": experts**2,
            "experts": experts,
            "spectra": experts * points,
            "histograms": BINS,
            "energy_map": min(BINS, out) + min(BINS, width),
        }
        total += len(f"{group.layer}, ")  # it is in the head's list
        total += sum(_record_bytes(name, group) * count for name, count in rows.items())
    return total


def parquet_bytes(groups: Iterable[ExpertGroup]) -> int:
    """At most of the table `groups` as Parquet."""
    rows, columns = sum(1 for _ in groups), len(COLUMNS["groups"])
    return HEAD + columns * (FOOTER + rows * CELL)


def _record_bytes(table: str, group: ExpertGroup) -> int:
    """Of a row of a table, with what separates it from the next one."""
    experts, out, width = group.shape
    largest = {
        "layer": group.layer,
        **dict.fromkeys(("experts", "clusters", "cluster"), experts),
        **dict.fromkeys(("expert", "expert_i", "expert_j"), experts),
        **dict.fromkeys(("out", "in", "index", "bin"), max(out, width)),
        "count": 2 * experts * out * width,  # estimated from a sample of rows
    }
    characters = 0
    for column in COLUMNS[table]:
        if column in ("projection", "axis"):
            value = WORD
        else:
            value = len(str(largest[column])) if column in largest else NUMBER
        characters += len(json.dumps(column)) + len(": , ") + value
    return characters + len("{}")
