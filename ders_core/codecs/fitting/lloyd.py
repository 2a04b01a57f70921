"""Levels that are learnt from values: Lloyd's iteration over a histogram of them (Lloyd 1957).

Nothing here waits for a GPU: steps are masked where values are missing, and there sums over bins
are taken of integers, which any order of summation gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.compute import kernels
from ders_core.compute.pieces import chunk_values
from ders_core.later import torch

HISTOGRAM_BINS = 1 << 14
SWEEPS = 60

SUM_BITS = 62
"""Of a sum of integers."""

HALF_BITS = 16
"""Of half of a value's weight among integers: halves are summed up apart, so there is room for a
weight of twice as many bits, and a column 10⁶ times as loud as the others does not silence them."""


def learnt(values: torch.Tensor, bits: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """2^bits levels with the least squared error for `values` themselves: float32, ascending, on
    their device.

    values: float32, any shape. weights: of each value's error, of the same shape. The result is the
    same each time, and on every device but for the last digits of sums in float64, and of weights:
    on a GPU they are multiples of 2⁻³² of the heaviest, and at least one where they are above 0.
    """
    flat = values.reshape(-1)
    if not flat.numel():
        return flat.new_zeros(2**bits)
    least, most = flat.aminmax()
    low, span = least.double(), most.double() - least.double()
    fine = HISTOGRAM_BINS / torch.where(span > 0, span, 1.0)
    share = None if weights is None else weights.reshape(-1)
    summed = _in_order if flat.device.type == "cpu" else _of_integers
    table = summed(flat, share, low, fine).levels(bits)
    return torch.where(span > 0, table, least)


@dataclass(frozen=True)
class Histogram:
    """Of values that levels are learnt for. mass: of the values in each bin, float64
    `[HISTOGRAM_BINS]`. total: the values times what they weigh, alike."""

    mass: torch.Tensor
    total: torch.Tensor

    def levels(self, bits: int) -> torch.Tensor:
        """2^bits levels, float32, ascending: Lloyd's iteration in float64, which starts from the
        compander that is best at high resolution (density^⅓, Panter and Dite 1951)."""
        mass, total, filled = self.mass, self.total, self.mass > 0
        if mass.device.type == "cpu" and bool(filled.any()):  # of a few values most are empty
            mass, total = mass[filled], total[filled]
            filled = mass > 0
        centre = total / torch.where(filled, mass, 1.0)
        sums = torch.stack([mass, torch.where(filled, mass * centre, 0.0), _cube_roots(mass)])
        up_to = sums.cumsum(1)
        # an empty bin is where the last one before it is, and weighs nothing
        places = torch.where(filled, centre, -torch.inf).cummax(0).values
        table = _companded(filled, places, up_to[2], 2**bits)
        before = torch.nn.functional.pad(up_to[:2], (1, 0))
        if kernels.takes(table, places, before):
            from ders_core.compute.kernels.lloyd import sweep

            sweep(table.numpy(), places.numpy(), before.numpy(), SWEEPS)
        else:
            table = _swept(table, places, before)
        return table.float()


def _swept(table: torch.Tensor, places: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """As `compute.kernels.lloyd.sweep`, without compiled loops; a new table."""
    begin, end = (places.new_full((1,), edge, dtype=torch.int64) for edge in (0, len(places)))
    for _ in range(SWEEPS):
        edges = torch.searchsorted(places, (table[1:] + table[:-1]) / 2)
        inside, shares = before[:, torch.cat([begin, edges, end])].diff(dim=1)
        means = shares / torch.where(inside > 0, inside, 1.0)
        moved = torch.where(inside > 0, means, table)
        if moved.device.type == "cpu" and torch.equal(moved, table):
            break
        table = moved.sort().values
    return table


def _companded(
    filled: torch.Tensor, places: torch.Tensor, spread: torch.Tensor, count: int
) -> torch.Tensor:
    """Quantiles of the density to the power of one third, whose sums up to each bin are `spread`;
    if no more bins are filled, these, and the last one again."""
    known, last = filled.cumsum(0), len(places) - 1
    numbers = torch.arange(count, device=places.device)
    each = places[torch.searchsorted(known, numbers + 1).clamp_max(last)]
    at = (numbers + 0.5) / count * spread[-1]
    quantiles = places[torch.searchsorted(spread, at).clamp_max(last)]
    return torch.where(known[-1] <= count, each, quantiles)


def _cube_roots(mass: torch.Tensor) -> torch.Tensor:
    if mass.device.type == "cpu":  # as files of before have it: torch rounds otherwise
        return torch.from_numpy(mass.numpy() ** (1 / 3))
    return mass ** (1 / 3)


def _in_order(
    flat: torch.Tensor, share: torch.Tensor | None, low: torch.Tensor, fine: torch.Tensor
) -> Histogram:
    """Summed up in float64, one value after another, on the CPU."""
    place = _bins(flat, low, fine)
    weights = None if share is None else share.double()
    of_values = flat.double() if weights is None else flat.double() * weights
    mass, total = (
        torch.bincount(place, each, minlength=HISTOGRAM_BINS).double()
        for each in (weights, of_values)
    )
    return Histogram(mass, total)


def _of_integers(
    flat: torch.Tensor, share: torch.Tensor | None, low: torch.Tensor, fine: torch.Tensor
) -> Histogram:
    """The same of values that are rounded to multiples of a power of two, a piece at a time."""
    bits = SUM_BITS - (0 if share is None else HALF_BITS) - len(flat).bit_length()
    step = _power_of_two(torch.frexp(flat.abs().amax()).exponent - bits)
    unit = torch.ones_like(step)
    if share is not None:
        heaviest = share.amax().double()
        unit = torch.where(heaviest > 0, heaviest, 1.0) / 4**HALF_BITS
    sums = torch.zeros(2, 2, HISTOGRAM_BINS, dtype=torch.int64, device=flat.device)
    length = chunk_values(flat.device)
    for number, values in enumerate(flat.split(length)):
        place, steps = _bins(values, low, fine), (values.double() / step).round().long()
        halves = [torch.ones_like(place)]
        if share is not None:
            whole = _whole(share[number * length :][:length].double() / unit)
            halves = [whole & (1 << HALF_BITS) - 1, whole >> HALF_BITS]
        for half, (mass, total) in zip(halves, sums, strict=False):
            mass.scatter_add_(0, place, half)
            total.scatter_add_(0, place, half * steps)
    lower, upper = sums.double()
    mass, total = (lower + upper * 2**HALF_BITS) * unit
    return Histogram(mass, total * step)


def _whole(weights: torch.Tensor) -> torch.Tensor:
    """Rounded to int64; those above 0 are at least 1."""
    return torch.maximum(weights.round().long(), (weights > 0).long())


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent, float64, to the last bit."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _bins(flat: torch.Tensor, low: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """int64 `[n]`. low: of the first bin. fine: bins to 1."""
    return ((flat - low) * fine).long().clamp_(0, HISTOGRAM_BINS - 1)
