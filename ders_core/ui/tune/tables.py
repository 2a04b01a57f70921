"""An allocation as tables: a row a matrix, and a row a group of experts."""

from __future__ import annotations

from ders_core.later import pd
from ders_core.tune.allocate import Allocation, Chosen
from ders_core.tune.scores import Scores
from ders_core.units import visible

NONE = "none"
"""In the place of a codec: the group stays as it is, and has no base."""


def units_table(allocation: Allocation, scores: Scores) -> pd.DataFrame:
    """A row for each unit: `matrix`, `layer`, `projection`, `part`, `codec`, `bits` a weight,
    `bytes`, and `cost`, what its own errors cost by prediction, in nats a token."""
    rows = []
    for number, each in enumerate(allocation.chosen):
        unit, candidate = each.scored.unit, each.candidate
        rows.append(
            {
                "matrix": visible(unit.label),
                "layer": unit.layer,
                "projection": unit.projection,
                "part": unit.part,
                "codec": NONE if candidate is None else candidate.codec.label,
                "bits": 0.0 if candidate is None else each.scored.bits(candidate),
                "bytes": 0 if candidate is None else candidate.nbytes,
                "cost": _cost(each, number, scores),
            }
        )
    return pd.DataFrame(rows)


def _cost(chosen: Chosen, number: int, scores: Scores) -> float:
    """Of a unit's own noise, and of what is missing of it, before they meet those of others."""
    candidate, column = chosen.candidate, scores.column.get(number)
    if candidate is None:
        return 0.0
    if column is None:
        return candidate.noise
    square = float(scores.coupling.square[column, column])
    return candidate.noise + square / 2 * (1 - candidate.gain) ** 2


def groups_table(units: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """A row for each group: `layer`, `projection`, codecs of `deltas` and `base`, `bytes` and
    `cost` of both, and `bits`: of both for each weight of an expert. units: as of `units_table`;
    its deltas are not chosen for each expert."""
    deltas = [each.unit.weights for each in scores.units if each.unit.part == "deltas"]
    of_deltas, of_base = (
        units[units["part"] == part].set_index(["layer", "projection"])
        for part in ("deltas", "base")
    )
    both = of_deltas[["bytes", "cost"]] + of_base[["bytes", "cost"]]
    table = both.assign(
        deltas=of_deltas["codec"],
        base=of_base["codec"],
        bits=8 * both["bytes"] / pd.Series(deltas, of_deltas.index),
    )
    table = table.reset_index()
    return table.astype({"layer": int})
