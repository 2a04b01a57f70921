"""What decomposition saves against coding the weights themselves, told before anything is encoded.

Entries are taken for Gaussian, and codes for multiples of a step that are entropy-coded and give
all of a value back (`entropy` with `gain: unbiased`): what is missing of deltas adds up over the
layers and costs more than noise of that energy, so errors are compared that have nothing missing.
A code of B bits with the least error D(B)² then has the noise D²/(1 − D²).

Plain coding of weights in B bits has that noise, d of their energy. With a base that K experts
share, coded in b bits, Δ is taken against what that gives back: it has the energy
v = r + (1 − r) D(b)², r the share of ΣW² that is ΣΔ². For the same noise d it takes B bits where
D(B)² = d / (d + v), and b/K for the base; the b that takes least in all is chosen. Where bits are
many, this saves ½ log2(1/r), the logarithm of ‖W‖/‖Δ‖, without the base's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.compute.gaussian_error import bits_of_entropy_coding, of_entropy_coding
from ders_core.later import np

PLAIN = 4.0
"""Bits a weight of plain coding, at whose error both are compared."""

MOST_BASE_BITS, STEP = 16, 0.25
"""The bits of bases that are tried."""

NOTHING = 0.05
"""Bits: less is no saving."""


@dataclass(frozen=True)
class SharedEnergy:
    """A group of `experts` with `values` weights in all, of `dtype_bits` each. of_deltas: ΣΔ²/ΣW²
    with as many bases as the key says."""

    experts: int
    values: int
    dtype_bits: int
    of_deltas: dict[int, float]


@dataclass(frozen=True)
class Expense:
    """Bits a weight, base included, at the error of plain coding with `PLAIN` bits. deltas, bases:
    of these, with coded bases. kept: with bases in the dtype of the weights."""

    deltas: float
    bases: float
    kept: float

    @property
    def coded(self) -> float:
        return self.deltas + self.bases


@dataclass(frozen=True)
class Saving:
    """Means over groups, by their weights. least, most: bits that one group saves with coded bases.
    sampled: whether few rows of few groups tell it."""

    expense: Expense
    least: float
    most: float
    groups: int
    sampled: bool

    @property
    def bits(self) -> float:
        """Bits a weight that decomposition saves at equal error; below 0: it costs so many."""
        return PLAIN - self.expense.coded

    @property
    def sentence(self) -> str:
        over = f"{self.groups} group{'s' if self.groups != 1 else ''}"
        where = f"told by a sample of {over}" if self.sampled else f"from {over}"
        if self.bits < NOTHING:
            return (
                f"At the error of plain {PLAIN:g}-bit coding, decomposition saves nothing "
                f"({where}): base: none codes the weights themselves."
            )
        kept = PLAIN - self.expense.kept
        more = f"{kept:.1f}" if kept >= NOTHING else "nothing"
        return (
            f"At the error of plain {PLAIN:g}-bit coding, decomposition takes about "
            f"{self.expense.coded:.1f} bits a weight ({self.expense.deltas:.1f} for deltas, "
            f"{self.expense.bases:.1f} for coded bases): it saves {self.bits:.1f} bits "
            f"({self.least:.1f} to {self.most:.1f}, {where}), and {more} if bases stay as they are."
        )


def saving(groups: Sequence[SharedEnergy], *, sampled: bool) -> Saving | None:
    """What is to be expected of groups; None without any."""
    if not groups:
        return None
    expenses = [expense(group) for group in groups]
    shares = np.array([group.values for group in groups], dtype=np.float64)
    shares /= shares.sum()
    deltas, bases, kept = (
        float(shares @ np.array([getattr(each, name) for each in expenses]))
        for name in ("deltas", "bases", "kept")
    )
    saved = [PLAIN - each.coded for each in expenses]
    return Saving(Expense(deltas, bases, kept), min(saved), max(saved), len(groups), sampled)


def expense(group: SharedEnergy) -> Expense:
    """The least of all numbers of bases that are known, and of all bits for them."""
    least = of_entropy_coding(PLAIN) ** 2
    noise = least / (1 - least)
    bits = np.arange(0, MOST_BASE_BITS + STEP, STEP)
    remaining = np.array([of_entropy_coding(float(each)) ** 2 for each in bits])
    best: Expense | None = None
    for count, share in group.of_deltas.items():
        share = min(max(share, 0.0), 1.0)
        of_deltas = _bits(noise, share + (1 - share) * remaining)
        of_bases = count / group.experts * bits
        place = int(np.argmin(of_deltas + of_bases))
        kept = float(_bits(noise, np.array([share]))[0]) + count / group.experts * group.dtype_bits
        tried = Expense(float(of_deltas[place]), float(of_bases[place]), kept)
        if best is None:
            best = tried
        else:
            chosen = min(best, tried, key=lambda each: each.coded)
            best = Expense(chosen.deltas, chosen.bases, min(best.kept, tried.kept))
    assert best is not None, "the energy with one base is always known"
    return best


def _bits(noise: float, energies: np.ndarray) -> np.ndarray:
    """Bits with which values of these energies come back with that noise, and nothing missing."""
    return bits_of_entropy_coding(np.sqrt(noise / (noise + energies)))
