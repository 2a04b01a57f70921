"""What a codec will cost in error, told from the tables before anything is encoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ders_core.analysis.tables import Analysis, of_group

GAUSSIAN_ERROR = {
    1: 0.6028,
    2: 0.3447,
    3: 0.1935,
    4: 0.1074,
    5: 0.0590,
    6: 0.0322,
    7: 0.0174,
    8: 0.0094,
}
"""‖Δ̂−Δ‖/‖Δ‖ of the best uniform quantizer of a Gaussian with 2^bits levels (Max 1960, table II)."""


def pooled_energy(analysis: Analysis, layer: int, projection: str) -> tuple[np.ndarray, np.ndarray]:
    """(index, cumulative share of Σσ² over all experts of the group); empty without spectra."""
    rows = of_group(analysis.spectra, layer, projection)
    if rows.empty:
        return np.empty(0), np.empty(0)
    experts = of_group(analysis.experts, layer, projection).set_index("expert")
    weight = experts["norm_delta"] ** 2
    table = rows.pivot(index="index", columns="expert", values="energy")
    total = float(weight.sum())
    shares = weight / total if total else weight * 0 + 1 / len(weight)
    pooled = table.mul(shares[table.columns], axis=1).sum(axis=1)
    return table.index.to_numpy(), pooled.to_numpy()


def rank_for_energy(analysis: Analysis, layer: int, projection: str, energy: float) -> int:
    """The smallest rank with which the group's experts together keep `energy` of Σσ².

    Between the stored points of a long spectrum the energy is interpolated. 0 without spectra.
    """
    index, pooled = pooled_energy(analysis, layer, projection)
    if not index.size:
        return 0
    ranks = np.arange(1, int(index[-1]) + 1)
    kept = np.interp(ranks, index, pooled)
    reached = np.nonzero(kept >= energy * (1 - 1e-12))[0]
    return int(ranks[reached[0]]) if reached.size else int(ranks[-1])


def predicted_error(
    analysis: Analysis, layer: int, projection: str, codec: Mapping[str, Any]
) -> float | None:
    """An estimate of ‖Ŵ−W‖/‖Δ‖ for a codec given as `{"codec": name, **parameters}`.

    Low rank: from the spectrum. Random drop: √(p/(1−p)), its expectation. Magnitude: from the
    histogram's tails. Quantized: as for Gaussian values. None where the tables cannot tell.
    """
    match codec.get("codec"):
        case "keep":
            return 0.0
        case "sparse" if codec.get("method", "random") == "random":
            rate = float(codec["drop_rate"])
            return math.sqrt(rate / (1 - rate))
        case "sparse":
            return _magnitude_error(analysis, layer, projection, float(codec["drop_rate"]))
        case "quantized":
            return GAUSSIAN_ERROR.get(int(codec["bits"]))
        case "lowrank":
            if codec.get("energy") is not None:
                return math.sqrt(max(1 - float(codec["energy"]), 0.0))
            index, pooled = pooled_energy(analysis, layer, projection)
            if not index.size:
                return None
            return math.sqrt(max(1 - float(np.interp(float(codec["rank"]), index, pooled)), 0.0))
        case _:
            return None


def _magnitude_error(
    analysis: Analysis, layer: int, projection: str, drop_rate: float
) -> float | None:
    """√ of the share of ΣΔ² in the `drop_rate` smallest entries. The outermost bins hold all that
    lies beyond, so their energy is what the others leave of the deltas' own."""
    rows = of_group(analysis.histograms, layer, projection)
    counts = rows["count"].to_numpy(dtype=float)
    total = float((of_group(analysis.experts, layer, projection)["norm_delta"] ** 2).sum())
    if not counts.sum() or not total:
        return 0.0
    middle = ((rows["left"] + rows["right"]) / 2).abs().to_numpy()
    order = np.argsort(middle, kind="stable")
    inner = order[:-2]
    count = np.concatenate([[0.0], counts[inner], [counts[order[-2:]].sum()]])
    inside = np.cumsum(counts[inner] * middle[inner] ** 2)
    energy = np.concatenate([[0.0], np.minimum(inside, total), [total]])  # cumulative
    dropped = np.interp(drop_rate * counts.sum(), np.cumsum(count), energy)
    return math.sqrt(float(dropped) / total)
