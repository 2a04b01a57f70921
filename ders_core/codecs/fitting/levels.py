"""Sets of levels that normalised values are rounded to, the same on all machines.

v ≈ s·L[q] (+ z): a codec keeps the code q of every value and the scale s of a block of them. The
levels L are uniform, those that suit a Gaussian best, minus one to one, or learnt from the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from ders_core.later import np, torch

FINENESS = 1024
"""Levels that are computed are rounded to multiples of 1 / FINENESS, so that the last digits of a
machine's arithmetic do not decide what a file means."""

BINS = 1 << 12
"""Into which values are sorted before they are compared with a border."""

FEW = 16
"""Levels that are compared with every value, which takes no longer than to look them up."""

HISTOGRAM_BINS = 1 << 14
SWEEPS = 60


@dataclass(frozen=True)
class Levels:
    """table: float32 `[n]`, ascending. uniform: neighbours are 1 apart."""

    table: torch.Tensor
    uniform: bool

    @cached_property
    def borders(self) -> torch.Tensor:
        """Halfway between neighbours, float32 `[n − 1]`."""
        return (self.table[1:] + self.table[:-1]) / 2

    @cached_property
    def _shortcut(self) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        """(code at the least that a bin may hold, borders and infinity, bins to 1); None where
        borders are too close for it."""
        low, high = float(self.borders[0]), float(self.borders[-1])
        if not high > low:
            return None
        fine = (BINS - 4) / (high - low)
        if float(self.borders.diff().min()) * fine < 2:
            return None
        edges = low + (torch.arange(BINS).double() - 3) / fine  # one bin below each bin's edge
        code = torch.bucketize(edges, self.borders.double(), right=True).to(torch.int32)
        ends = torch.cat([self.borders, torch.full((2,), torch.inf)])
        return code, ends, fine

    @cached_property
    def _of_bins(self) -> torch.Tensor | None:
        """The level nearest to the middle of each bin, float32 `[BINS]`; None where levels are few
        enough, or too close, to be told apart value by value."""
        if self.uniform or self.count <= FEW or self._shortcut is None:
            return None
        _, ends, fine = self._shortcut
        middles = float(ends[0]) + (torch.arange(BINS).double() - 1.5) / fine
        return self.table[torch.bucketize(middles, self.borders.double(), right=True)]

    @cached_property
    def rough(self) -> np.ndarray:
        """What `snap_roughly_` looks up, float32; `[0]` where it is `snap_`."""
        of_bins = self._of_bins
        return np.empty(0, dtype=np.float32) if of_bins is None else of_bins.numpy()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]:
        """(table, borders, bins, fine) as `compute.kernels.levels` wants them."""
        none = np.empty(0, dtype=np.int32)
        if self.uniform:
            return self.table.numpy(), np.empty(0, dtype=np.float32), none, np.float32(0)
        if self._shortcut is None:
            ends = torch.nn.functional.pad(self.borders, (0, 2), value=torch.inf)
            return self.table.numpy(), ends.numpy(), none, np.float32(0)
        first, ends, fine = self._shortcut
        return self.table.numpy(), ends.numpy(), first.numpy(), np.float32(fine)

    @property
    def count(self) -> int:
        return self.table.numel()

    @cached_property
    def reach(self) -> float:
        """The outermost level."""
        return float(self.table.abs().max()) or 1.0

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The code of the level nearest to each value; float32 where the levels are uniform, else
        an integer. Halfway between, the upper one."""
        if self.uniform:
            lowest = float(self.table[0])
            return (values - (lowest - 0.5)).floor_().clamp_(0, self.count - 1)
        if self._shortcut is None:
            return torch.bucketize(values, self.borders.to(values.device), right=True)
        first, borders, fine = self._shortcut
        flat, ends = values.reshape(-1), borders.to(values.device)
        code = first.to(values.device).index_select(0, self._bins(flat, fine))
        for _ in range(2):  # a bin and the one below it hold no more borders
            code += flat >= ends.index_select(0, code)
        return code.view(values.shape)

    def snap_(self, values: torch.Tensor) -> torch.Tensor:
        """Each value becomes the level nearest to it, in place; float32."""
        if not self.uniform:
            return values.copy_(self.at(self.nearest(values)))
        lowest = float(self.table[0])
        return values.sub_(lowest - 0.5).floor_().clamp_(0, self.count - 1).add_(lowest)

    def snap_roughly_(self, values: torch.Tensor) -> torch.Tensor:
        """The same, but near a border it may be the other level, where there are many: errors are
        as large, so a search for a scale need not care."""
        if self._of_bins is None or self._shortcut is None:
            return self.snap_(values)
        places = self._bins(values.reshape(-1), self._shortcut[2])
        levels = self._of_bins.to(values.device).index_select(0, places)
        return values.copy_(levels.view(values.shape))

    def _bins(self, flat: torch.Tensor, fine: float) -> torch.Tensor:
        """int32 `[n]`."""
        place = (flat - float(self.borders[0])).mul_(fine).add_(2).clamp_(0, BINS - 1)
        place.nan_to_num_(0.0)  # of deltas beyond float32, which are refused once they are decoded
        return place.to(torch.int32)

    def at(self, codes: torch.Tensor) -> torch.Tensor:
        """The levels that codes of any integer or float dtype stand for, float32."""
        if self.uniform:
            return codes.float() + float(self.table[0])
        flat = codes.reshape(-1).to(torch.int32)
        return self.table.to(codes.device).index_select(0, flat).view(codes.shape)


@cache
def uniform(count: int, *, centred: bool = True) -> Levels:
    """`count` levels 1 apart, around 0 (mid-rise where count is even), or from 0 up."""
    table = torch.arange(count, dtype=torch.float32)
    return Levels(table - (count - 1) / 2 if centred else table, uniform=True)


@cache
def ternary() -> Levels:
    """−1, 0 and 1."""
    return Levels(torch.tensor([-1.0, 0.0, 1.0]), uniform=True)


@cache
def normal(bits: int) -> Levels:
    """The levels with the least squared error for a Gaussian of variance 1 (Lloyd 1957, Max
    1960)."""
    from scipy.special import ndtr, ndtri  # here: every command would wait for it

    count = 2**bits
    table = ndtri((np.arange(count) + 0.5) / count)
    for _ in range(4000):
        edges = np.concatenate([[-np.inf], (table[1:] + table[:-1]) / 2, [np.inf]])
        mass, density = np.diff(ndtr(edges)), np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
        moved = -np.diff(density) / mass
        done = np.abs(moved - table).max() < 1e-9
        table = moved
        if done:
            break
    rounded = np.round((table - table[::-1]) / 2 * FINENESS) / FINENESS
    return Levels(torch.tensor(rounded, dtype=torch.float32), uniform=False)


def levels_of(grid: str, bits: int | None) -> Levels:
    """Of a grid of `Quantized` that is not learnt. bits: None for the ternary one."""
    if bits is None:
        return ternary()
    return normal(bits) if grid == "normal" else uniform(2**bits, centred=grid != "affine")


def learnt(values: torch.Tensor, bits: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """2^bits levels with the least squared error for `values` themselves: float32, ascending.

    values: float32, any shape. weights: of each value's error, of the same shape. The result is the
    same on every device.
    """
    flat = values.reshape(-1)
    low, high = (float(flat.min()), float(flat.max())) if flat.numel() else (0.0, 0.0)
    if not high > low:
        return torch.full((2**bits,), low)
    place = ((flat - low) * (HISTOGRAM_BINS / (high - low))).long().clamp_(0, HISTOGRAM_BINS - 1)
    share = None if weights is None else weights.reshape(-1).double()
    mass = _summed(place, share)
    total = _summed(place, flat.double() if share is None else flat.double() * share)
    return Histogram(mass, total).levels(bits)


@dataclass(frozen=True)
class Histogram:
    """Of values that levels are learnt for. mass: of the values in each bin, float64
    `[HISTOGRAM_BINS]`. total: the values times what they weigh, alike."""

    mass: np.ndarray
    total: np.ndarray

    def levels(self, bits: int) -> torch.Tensor:
        """2^bits levels, float32, ascending: Lloyd's iteration in float64, which starts from the
        compander that is best at high resolution (density^⅓, Panter and Dite 1951)."""
        filled = self.mass > 0
        mass, centre = self.mass[filled], self.total[filled] / self.mass[filled]
        table = _companded(mass, centre, 2**bits)
        below = np.concatenate([[0.0], np.cumsum(mass)])
        first = np.concatenate([[0.0], np.cumsum(mass * centre)])
        for _ in range(SWEEPS):
            edges = np.searchsorted(centre, (table[1:] + table[:-1]) / 2)
            bounds = np.concatenate([[0], edges, [len(centre)]])
            inside = np.diff(below[bounds])
            means = np.diff(first[bounds]) / np.where(inside > 0, inside, 1)
            moved = np.where(inside > 0, means, table)
            if np.array_equal(moved, table):
                break
            table = np.sort(moved)
        return torch.tensor(table, dtype=torch.float32)


def _summed(place: torch.Tensor, weights: torch.Tensor | None) -> np.ndarray:
    """Sums over bins, on the CPU: there the order of summation is fixed."""
    bins = place.cpu()
    shares = None if weights is None else weights.cpu()
    return torch.bincount(bins, shares, minlength=HISTOGRAM_BINS).double().numpy()


def _companded(mass: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """Quantiles of the density to the power of one third."""
    if len(centre) <= count:
        return np.concatenate([centre, np.full(count - len(centre), centre[-1])])
    spread = np.cumsum(mass ** (1 / 3))
    at = (np.arange(count) + 0.5) / count * spread[-1]
    quantiles: np.ndarray = centre[np.minimum(np.searchsorted(spread, at), len(centre) - 1)]
    return quantiles
