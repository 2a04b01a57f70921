"""Sets of levels that normalised values are rounded to, the same on all machines.

v ≈ s·L[q] (+ z): a codec keeps the code q of every value and the scale s of a block of them. The
levels L are uniform, those that suit a Gaussian best, minus one to one, or learnt from the values
(`lloyd`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property

from ders_core.compute.sent import sent
from ders_core.later import np, torch

FINENESS = 1024
"""Levels that are computed are rounded to multiples of 1 / FINENESS, so that the last digits of a
machine's arithmetic do not decide what a file means."""

BINS = 1 << 12
"""Into which values are sorted before they are compared with a border."""

FEW = 16
"""Levels that are compared with every value, which takes no longer than to look them up."""


@dataclass(frozen=True)
class Levels:
    """table: float32 `[n]`, ascending, on the CPU if uniform. uniform: neighbours are 1 apart."""

    table: torch.Tensor
    uniform: bool
    _elsewhere: dict[torch.device, Levels] = field(default_factory=dict, repr=False, compare=False)

    def on(self, device: torch.device) -> Levels:
        """The same with the table on a device."""
        if self.table.device == device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = Levels(sent(self.table, device), self.uniform)
        return self._elsewhere[device]

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
        return self._middles(self._shortcut[2])

    def _middles(self, fine: float | torch.Tensor) -> torch.Tensor:
        """The level nearest to the middle of each bin. fine: bins to 1."""
        borders = self.borders.double()
        bins = torch.arange(BINS, dtype=torch.float64, device=borders.device)
        middles = borders[0] + (bins - 1.5) / fine
        return self.table[torch.bucketize(middles, borders, right=True)]

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
    def outermost(self) -> torch.Tensor:
        """The largest magnitude of a level, or 1: float64 `[]`, where the table is."""
        largest = self.table.abs().amax().double()
        return torch.where(largest > 0, largest, 1.0)

    @cached_property
    def reach(self) -> float:
        """The same as a number."""
        return float(self.outermost)

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The code of the level nearest to each value; float32 where the levels are uniform, else
        an integer. Halfway between, the upper one."""
        if self.uniform:
            lowest = float(self.table[0])
            return (values - (lowest - 0.5)).floor_().clamp_(0, self.count - 1)
        if values.device.type != "cpu" or self._shortcut is None:
            return torch.bucketize(values, self.on(values.device).borders, right=True)
        first, ends, fine = self._shortcut
        flat = values.reshape(-1)
        code = first.index_select(0, self._bins(flat, fine))
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
        if values.device.type != "cpu":
            return self.on(values.device)._snap_roughly_there_(values)
        if self._of_bins is None or self._shortcut is None:
            return self.snap_(values)
        places = self._bins(values.reshape(-1), self._shortcut[2])
        return values.copy_(self._of_bins.index_select(0, places).view(values.shape))

    def _snap_roughly_there_(self, values: torch.Tensor) -> torch.Tensor:
        """The same where the table is not on the CPU, and cannot be asked how close borders are."""
        if self.uniform or self.count <= FEW:
            return self.snap_(values)
        span = (self.borders[-1] - self.borders[0]).double()
        fine = (BINS - 4) / span
        is_rough = (span > 0) & (self.borders.diff().amin() * fine >= 2)
        fine = torch.where(is_rough, fine, 1.0)
        roughly = self._middles(fine).index_select(0, self._bins(values.reshape(-1), fine))
        exactly = self.snap_(values.clone())
        return values.copy_(torch.where(is_rough, roughly.view(values.shape), exactly))

    def _bins(self, flat: torch.Tensor, fine: float | torch.Tensor) -> torch.Tensor:
        """int32 `[n]`."""
        place = (flat - self.borders[0]).mul_(fine).add_(2).clamp_(0, BINS - 1)
        place.nan_to_num_(0.0)  # of deltas beyond float32, which are refused once they are decoded
        return place.to(torch.int32)

    def at(self, codes: torch.Tensor) -> torch.Tensor:
        """The levels that codes of any integer or float dtype stand for, float32."""
        if self.uniform:
            return codes.float() + float(self.table[0])
        flat = codes.reshape(-1).to(torch.int32)
        return self.on(codes.device).table.index_select(0, flat).view(codes.shape)


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
