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

LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
"""Squared error of the best levels for a Gaussian of variance 1 (Max 1960, table I)."""

PANTER_DITE = 2.7207
"""π√3/2: times 4^−bits, the same where bits are many (Panter and Dite 1951)."""

TERNARY_ERROR = 0.4361
"""‖Δ̂−Δ‖/‖Δ‖ of the best −1, 0 and 1 of a Gaussian; the squared error is 0.1902."""

ENTROPY_CODED = {
    0.0: 1.0,
    0.1: 0.9085,
    0.25: 0.7895,
    0.5: 0.6173,
    1.0: 0.3483,
    1.5: 0.1776,
    2.0: 0.0889,
    3.0: 0.02224,
}
"""Squared error of a Gaussian of variance 1 whose entropy-coded multiples of a step take so many
bits, with centroids and the best adaptive zero."""

GISH_PIERCE = math.pi * math.e / 6
"""Times 4^−bits, the same where bits are many (Gish and Pierce 1968)."""


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

    Between the stored points of a long spectrum the energy is interpolated. 0 without spectra, and
    where only the largest singular values are known and do not reach so far.
    """
    index, pooled = pooled_energy(analysis, layer, projection)
    if not index.size:
        return 0
    ranks = np.arange(1, int(index[-1]) + 1)
    kept = np.interp(ranks, index, pooled)
    reached = np.nonzero(kept >= energy * (1 - 1e-12))[0]
    if reached.size:
        return int(ranks[reached[0]])
    return int(ranks[-1]) if _is_whole(analysis, layer, projection, index) else 0


def _is_whole(analysis: Analysis, layer: int, projection: str, index: np.ndarray) -> bool:
    """Whether the stored points reach the smallest singular value."""
    group = of_group(analysis.groups, layer, projection).iloc[0]
    return int(index[-1]) == min(int(group["out"]), int(group["in"]))


def predicted_error(
    analysis: Analysis, layer: int, projection: str, codec: Mapping[str, Any]
) -> float | None:
    """An estimate of ‖Ŵ−W‖/‖Δ‖ for a codec given as `{"codec": name, **parameters}`.

    Low rank: from the spectrum. Random drop: its expectation, √(p/(1−p)), or √p where values are
    not rescaled to be unbiased. Magnitude: from the histogram's tails, as if the matrix had one
    budget. Quantized and entropy-coded: as for Gaussian values of one variance, which scales of
    small groups undercut. Bits of stored values, factors and scales are taken to be enough, and
    there is no calibration. None where the tables cannot tell: N:M patterns, della, chains, and
    ranks that bits decide.
    """
    match codec.get("codec"):
        case "keep" | "lossless":
            return 0.0
        case "sparse" if codec.get("drop_rate") is not None:
            return _sparse_error(analysis, layer, projection, codec)
        case "quantized":
            return _quantized_error(codec)
        case "entropy":
            return math.sqrt(_entropy_coded(float(codec["bits"])))
        case "lowrank":
            if codec.get("energy") is not None:
                return math.sqrt(max(1 - float(codec["energy"]), 0.0))
            index, pooled = pooled_energy(analysis, layer, projection)
            rank = codec.get("rank")
            if not index.size or rank is None:
                return None
            if rank > index[-1] and not _is_whole(analysis, layer, projection, index):
                return None
            return math.sqrt(max(1 - float(np.interp(float(rank), index, pooled)), 0.0))
        case _:
            return None


def _sparse_error(
    analysis: Analysis, layer: int, projection: str, codec: Mapping[str, Any]
) -> float | None:
    rate = float(codec["drop_rate"])
    match codec.get("method", "random"):
        case "random":
            unbiased = codec.get("rescale") in (None, "unbiased")
            return math.sqrt(rate / (1 - rate) if unbiased else rate)
        case "magnitude":
            return _magnitude_error(analysis, layer, projection, rate)
        case _:
            return None


def _quantized_error(codec: Mapping[str, Any]) -> float | None:
    grid = codec.get("grid", "uniform")
    if grid == "ternary":
        return TERNARY_ERROR
    bits = int(codec["bits"])
    if grid in ("normal", "learned"):
        return math.sqrt(LLOYD_MAX.get(bits, PANTER_DITE * 4.0**-bits))
    return GAUSSIAN_ERROR.get(bits)


def _entropy_coded(bits: float) -> float:
    """Between the points of the table the logarithm is interpolated."""
    if bits > max(ENTROPY_CODED):
        return GISH_PIERCE * 4.0**-bits
    logs = [math.log(error) for error in ENTROPY_CODED.values()]
    return math.exp(float(np.interp(bits, list(ENTROPY_CODED), logs)))


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
