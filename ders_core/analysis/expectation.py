"""What a codec will leave of deltas, estimated from the tables before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ders_core.analysis.tables import Analysis, of_group
from ders_core.codecs import Codec, Expected
from ders_core.later import np


def rank_for_energy(analysis: Analysis, layer: int, projection: str, energy: float) -> int:
    """The smallest rank with which the group's experts together keep `energy` of Σσ².

    Between the stored points of a long spectrum the energy is interpolated. 0 without spectra, and
    where only the largest singular values are known and do not reach that energy.
    """
    index, pooled = analysis.pooled_energy(layer, projection)
    if not index.size:
        return 0
    ranks = np.arange(1, int(index[-1]) + 1)
    kept = np.interp(ranks, index, pooled)
    reached = np.nonzero(kept >= energy * (1 - 1e-12))[0]
    if reached.size:
        return int(ranks[reached[0]])
    return int(ranks[-1]) if _is_complete(analysis, layer, projection, index) else 0


def _is_complete(analysis: Analysis, layer: int, projection: str, index: np.ndarray) -> bool:
    """Whether the stored points reach the smallest singular value."""
    group = of_group(analysis.groups, layer, projection).iloc[0]
    return int(index[-1]) == min(int(group["out"]), int(group["in"]))


@dataclass(frozen=True)
class GroupEnergies:
    """`DeltaStatistics` of one group, looked up in the tables of an analysis."""

    analysis: Analysis
    layer: int
    projection: str

    @property
    def groups(self) -> int:
        return len(self.analysis.groups)

    def energy_of_rank(self, rank: int) -> float | None:
        """From the spectra. None without them, and beyond the largest singular values where only
        these are known."""
        index, pooled = self.analysis.pooled_energy(self.layer, self.projection)
        if not index.size:
            return None
        is_beyond = rank > index[-1]
        if is_beyond and not _is_complete(self.analysis, self.layer, self.projection, index):
            return None
        return float(np.interp(float(rank), index, pooled))

    def energy_of_smallest(self, share: float) -> float:
        """From the histogram; 0 for deltas of zeros."""
        entries, energies = self._ascending
        if not entries[-1] or not energies[-1]:
            return 0.0
        return float(np.interp(share * entries[-1], entries, energies) / energies[-1])

    @cached_property
    def _ascending(self) -> tuple[np.ndarray, np.ndarray]:
        """Cumulative numbers of entries and ΣΔ², from the bins around zero outwards. The outermost
        bins hold everything beyond, so their energy is what the others leave of the deltas'."""
        rows = self.analysis.rows("histograms", self.layer, self.projection)
        norms = self.analysis.rows("experts", self.layer, self.projection)["norm_delta"]
        counts, total = rows["count"].to_numpy(dtype=float), float((norms**2).sum())
        middle = ((rows["left"] + rows["right"]) / 2).abs().to_numpy()
        order = np.argsort(middle, kind="stable")
        inner, outer = order[:-2], order[-2:]
        entries = np.cumsum([0.0, *counts[inner], counts[outer].sum()])
        inside = np.cumsum(counts[inner] * middle[inner] ** 2)
        return entries, np.array([0.0, *np.minimum(inside, total), total])


def expected(analysis: Analysis, layer: int, projection: str, codec: Codec) -> Expected | None:
    """An estimate of a group's gain and noise under a codec, without a calibration. None where the
    tables are not enough; see `Codec.expected`."""
    return codec.expected(GroupEnergies(analysis, layer, projection))
