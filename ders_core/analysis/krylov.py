"""All singular values of a large matrix, estimated without an SVD.

A block of random vectors and its images under ΔᵀΔ span a Krylov space; the singular values of Δ
there approach its largest ones from below (Musco and Musco 2015), and the start block's weights on
them are a quadrature of the density of all (stochastic Lanczos quadrature: Golub and Meurant 2010,
chapter 5; Ubaru, Chen and Saad 2017).
"""

from __future__ import annotations

from collections.abc import Iterable

from ders_core.analysis.head import HEAD
from ders_core.compute.brought import bring_together
from ders_core.compute.eigen import eigen_of
from ders_core.compute.krylov import Dense, Krylov
from ders_core.compute.together import batches
from ders_core.later import np, torch

BLOCK, STEPS = 32, 8
"""Of the whole curve, usually: 256 products with Δ and Δᵀ each."""

MORE_STEPS, MOSTLY, NEARLY = 20, 0.3, 0.05
"""The curve takes up to so many steps while the space does not hold all of delta and at least
MOSTLY of the values seem to be nothing, below NEARLY of the last of the head: a delta of low rank,
whose null space the first steps do not part from its smallest values."""

SETTLED = 0.005
"""The curve has all of delta when no larger share of its energy is missing."""


def product_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it, else float32. Δ's rounding is noise of 2⁻⁹ in each
    entry: it moves a singular value by less than 0.1 %."""
    quick = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32


def curves(deltas: Iterable[torch.Tensor], energies: Iterable[float]) -> list[np.ndarray]:
    """Estimate all min(m, n) singular values of each delta, descending, float64.

    deltas: `[m, n]` in `product_dtype`, of which neither side is shorter than BLOCK · STEPS.
    energies: Σσ² of each, which the estimate has exactly. A GPU is waited for after a step for as
    many deltas as it holds.

    The HEAD largest values are those in the space, at least as near as `heads` finds them; the
    others follow the density: cumulative energy is within 1 % of the whole. The effective rank
    hangs on the smallest values. Where the spectrum has a floor of noise, as rounded weights give
    it, it is within 2 %; in bfloat16 within 7 % if that noise has only 1 % of the energy. Where the
    spectrum falls steeply, it is up to 12 % too high. Values that rounding delta and its products
    could have made are zero: about those below 1 % of √(Σσ² / min(m, n)) in bfloat16, 1e-5 of it in
    float32. So the effective rank is within 1 % for a delta of exactly low rank, up to 12 · BLOCK
    if at least MOSTLY of the values are nothing; it is too low where much of the spectrum is real
    and yet below that.
    """
    found, left = list[np.ndarray](), iter(energies)
    for some in batches(deltas, _held):
        searches = [_Search(delta, next(left)) for delta in some]
        some.clear()
        while growing := [search for search in searches if not search.is_done]:
            for search in growing:
                search.grow()
            grams = bring_together([search.gram for search in growing])
            for search, gram in zip(growing, grams, strict=True):
                search.look(gram)
        found += [search.estimate() for search in searches]
    return found


def _held(delta: torch.Tensor) -> int:
    """Bytes of a delta and of the longest space: its basis in float32, and images."""
    vectors = MORE_STEPS * BLOCK
    short, long = min(delta.shape), max(delta.shape)
    return delta.nbytes + vectors * (short * torch.float32.itemsize + long * delta.dtype.itemsize)


class _Search:
    """A space of delta that grows until the whole curve can be told of it."""

    def __init__(self, delta: torch.Tensor, energy: float) -> None:
        self._space = Krylov(Dense(delta), BLOCK, seed=0)
        self._rounding = _Rounding(delta)
        self._size, self._energy = min(delta.shape), energy
        self._steps = 0
        self.is_done = self._is_whole = False

    def grow(self) -> None:
        """Make the first look possible, or another one."""
        for _ in range(1 if self._steps else STEPS):
            self._space.grow()
            self._steps += 1

    @property
    def gram(self) -> torch.Tensor:
        """What is looked at, on the device of delta."""
        return self._space.gram

    def look(self, gram: torch.Tensor) -> None:
        """Say whether it is done. gram: on the CPU."""
        sigma, self._weights = (each.numpy() for each in self._space.values(eigen_of(gram)))
        floor = self._rounding.floor(self._energy, sigma[0])
        self._squares = np.where(sigma > floor, sigma**2, 0.0)
        self._is_whole = _is_whole(self._squares, self._weights, self._size, self._energy)
        nothing = float(self._weights[sigma < NEARLY * sigma[HEAD]].sum())
        is_full = self._steps == MORE_STEPS or (self._steps + 1) * BLOCK > self._size
        self.is_done = self._is_whole or nothing < MOSTLY or is_full

    def estimate(self) -> np.ndarray:
        if self._is_whole:
            values = np.pad(self._squares, (0, self._size - self._squares.size))
        else:
            resolution = self._rounding.resolution
            values = _density(self._squares, self._weights, self._size, self._energy, resolution)
        total = float(values.sum())
        estimate: np.ndarray = np.sqrt(values * (self._energy / total if total else 0.0))
        return estimate


def _is_whole(squares: np.ndarray, weights: np.ndarray, size: int, energy: float) -> bool:
    """Whether the Krylov space holds all of delta: no more values are to be expected, and no energy
    is missing. Arguments as of `_density`."""
    count = int(np.count_nonzero(squares))
    rank = size * float(weights[:count].sum())
    missing = energy - float(squares.sum())
    counted = squares.size - count >= BLOCK and rank - count <= _sampling_error(count) * count
    return counted and missing <= SETTLED * energy


def _density(
    squares: np.ndarray, weights: np.ndarray, size: int, energy: float, resolution: float
) -> np.ndarray:
    """Spread the density over `[size]` squares of singular values, descending.

    squares, weights: of the Krylov space, descending. The HEAD largest stay as they are. The energy
    of the others is the difference to the whole, or, where rounding of the whole (resolution, as a
    share of it) would drown that, what the density says.
    """
    top, rest = squares[:HEAD], squares[HEAD:]
    share = weights[HEAD:] / weights[HEAD:].sum()
    middles = np.cumsum(share) - share / 2
    others = np.interp((np.arange(size - HEAD) + 0.5) / (size - HEAD), middles, rest)
    measured = float(others.sum())
    if measured:
        similar = measured**2 / float((others**2).sum())
        if resolution * energy < _sampling_error(similar) * measured:
            others *= max(energy - float(top.sum()), 0.0) / measured
    values: np.ndarray = np.sort(np.concatenate([top, others]))[::-1]
    return values


def _sampling_error(count: float) -> float:
    """Of the sum of `count` similar squares, as BLOCK random vectors estimate it: four standard
    deviations, as a share (Hutchinson's estimate of a trace)."""
    deviation: float = (2 / (BLOCK * count)) ** 0.5 if count else 0.0
    return 4 * deviation


class _Rounding:
    """The rounding errors of the arithmetic, for a delta `[m, n]` in `product_dtype`.

    Rounding to a dtype of unit roundoff u adds to each entry an independent error, uniform in ±u of
    the entry at most: u/√3 of it, root mean square. A sum of n products in float32 adds √n such
    errors, root mean square (Higham and Mary 2019).
    """

    def __init__(self, delta: torch.Tensor) -> None:
        units = [torch.finfo(dtype).eps / 2 for dtype in (delta.dtype, torch.float32)]
        self._short = min(delta.shape)
        self._share: float = max(units[0], self._short**0.5 * units[1]) / 3**0.5
        self._spread: float = sum(side**-0.5 for side in delta.shape)

    @property
    def resolution(self) -> float:
        """The share of the energy by which rounding may move a sum of squares: each vector and
        each image moves by `share` of itself, at random against the singular vector, so its square
        by twice share/√side; four standard deviations."""
        return 4 * 2 * self._share * self._spread

    def floor(self, energy: float, largest: float) -> float:
        """The largest singular value that is made of rounding alone.

        A random `[m, n]` of energy E has no singular value above √E · (1/√m + 1/√n): once for
        delta, once for its images. In the images of the BLOCK start vectors, the largest singular
        value must cancel, and leaves its rounding error.
        """
        bulk: float = 2 * self._spread * energy**0.5
        images: float = (BLOCK / self._short) ** 0.5 * largest
        return self._share * (bulk + images)
