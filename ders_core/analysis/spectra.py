"""Singular values of the deltas, and what they say about rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress
from typing import Literal, get_args

from ders_core.analysis.deltas import Desk, deltas_on_gpu
from ders_core.analysis.head import heads
from ders_core.analysis.krylov import curves, product_dtype
from ders_core.checkpoint import ExpertGroup
from ders_core.compute.brought import bring_together
from ders_core.compute.eigen import eigenvalues_of_each
from ders_core.compute.magnitude import scale_for
from ders_core.compute.threads import IdleThreads, one_thread, side_by_side, threads_for
from ders_core.compute.together import batches
from ders_core.later import np, torch

Spectra = Literal["none", "head", "curve", "exact"]
"""Which singular values: none; the largest; all, estimated where exact ones cost much more; all."""

SPECTRA: tuple[Spectra, ...] = get_args(Spectra)

EXACT_BELOW = 1536
"""Matrices with a shorter side up to this get all their singular values for any request: it costs
no more than an estimate."""

GRAM_VALUES = 1 << 24
"""Of a matrix that are in float64 at a time."""

POINTS = 256
"""At most this many singular values are kept for drawing; sums are exact all the same."""


@dataclass(frozen=True)
class Spectrum:
    """index (1-based), singular_value, energy (cumulative share of Σσ²): arrays of equal length.

    effective_rank: exp of the entropy of σ/Σσ (Roy and Vetterli 2007), NaN where only the largest
    are known. stable_rank: Σσ²/σ₁².
    """

    index: np.ndarray
    singular_value: np.ndarray
    energy: np.ndarray
    effective_rank: float
    stable_rank: float


def singular_values_of_each(deltas: Iterable[torch.Tensor]) -> list[np.ndarray]:
    """All singular values of each delta, descending, float64 `[min(out, in)]`.

    deltas: float32 `[out, in]`, of one shape. From the eigenvalues of the shorter side's Gram
    matrix, in float64: right to about 1e−8 of σ₁. float32 would be right to 3e−4 of σ₁ only, and
    thousands of values of that size would lift the effective rank of a delta of low rank to a
    multiple. A GPU is waited for once for as many Gram matrices as it holds, and their copies for
    the solver.
    """
    found = list[np.ndarray]()
    for grams in batches(map(_gram, deltas), lambda gram: 2 * gram.nbytes):
        values = eigenvalues_of_each(grams)
        grams.clear()
        found += [each.numpy() for each in bring_together([each.sqrt() for each in values])]
    return found


def _gram(delta: torch.Tensor) -> torch.Tensor:
    """Of the shorter side, float64."""
    thin = delta if delta.shape[0] <= delta.shape[1] else delta.T
    short = thin.shape[0]
    gram = torch.zeros(short, short, dtype=torch.float64, device=thin.device)
    for part in thin.split(max(1, GRAM_VALUES // max(short, 1)), 1):
        columns = part.double()
        gram.addmm_(columns, columns.T)
    return gram


def spectrum_of(sigma: np.ndarray) -> Spectrum:
    """From all singular values, descending."""
    energy = np.cumsum(sigma**2)
    total, mass = (float(energy[-1]), float(sigma.sum())) if sigma.size else (0.0, 0.0)
    if total > 0:
        share = sigma[sigma > 0] / mass
        effective = float(np.exp(-(share * np.log(share)).sum()))
        stable = total / float(sigma[0] ** 2)
        energy = np.minimum(energy / total, 1.0)
    else:
        effective = stable = 0.0
        energy = np.ones_like(energy)
    chosen = np.unique(np.geomspace(1, max(sigma.size, 1), min(POINTS, sigma.size)).round())
    index = chosen.astype(np.int64)
    return Spectrum(index, sigma[index - 1], energy[index - 1], effective, stable)


def group_spectra(
    group: ExpertGroup,
    base: torch.Tensor,
    norms: np.ndarray,
    kind: Spectra,
    kept: torch.Tensor | None = None,
) -> list[Spectrum]:
    """One for each expert's delta, computed where the base is.

    base: `[out, in]` in storage dtype. norms: ‖Δ_i‖ `[K]`. kind: not "none". kept: the weights
    `[K, out, in]` as `group_statistics` fills them, beside the base; None to read each expert
    again.
    """
    all_values = kind == "exact" or min(base.shape) <= EXACT_BELOW
    work = _Work(group, base, norms, "exact" if all_values else kind, kept)
    return work.on_cpu() if base.device.type == "cpu" else work.on_gpu()


@dataclass(frozen=True)
class _Work:
    """The spectra of a group; fields as of `group_spectra`, but for a kind that is right for the
    size."""

    group: ExpertGroup
    base: torch.Tensor
    norms: np.ndarray
    kind: Spectra
    kept: torch.Tensor | None

    def on_cpu(self) -> list[Spectrum]:
        """In threads, an expert in each."""
        where, held = self.base.device, self.base.numel()
        held *= self.base.dtype.itemsize + self._dtype.itemsize
        threads = threads_for(len(self.norms), held, where)
        with ExitStack() as memory, side_by_side(where, threads) as pool:
            idle = IdleThreads(pool, threads - 1)
            desks = deque(
                Desk(self.group, self.base, self._dtype, memory, self.kept) for _ in range(threads)
            )

            def find(expert: int) -> Spectrum:
                scaled = _Scaled(float(self.norms[expert]))
                if not self._has_delta(scaled):
                    return self._nothing
                desk = desks.popleft()
                try:
                    delta = scaled.unit(desk.delta(expert))
                    return self._spectrum(self._values([delta], [scaled], idle)[0], scaled)
                finally:
                    desks.append(desk)

            return list(pool.map(find, range(len(self.norms))))

    def on_gpu(self) -> list[Spectrum]:
        """Of all experts together: a GPU is waited for as often as `_values` says."""
        scaled = [_Scaled(float(norm)) for norm in self.norms]
        has_delta = [*map(self._has_delta, scaled)]
        deltas = deltas_on_gpu(self.group, self.base, self._dtype, self.kept)
        units = (each.unit(delta) for each, delta in zip(scaled, deltas, strict=True))
        with one_thread():
            values = iter(self._values(compress(units, has_delta), [*compress(scaled, has_delta)]))
        return [
            self._spectrum(next(values), each) if is_chosen else self._nothing
            for each, is_chosen in zip(scaled, has_delta, strict=True)
        ]

    @property
    def _dtype(self) -> torch.dtype:
        """That deltas are rounded to."""
        return torch.float32 if self.kind == "exact" else product_dtype(self.base.device)

    def _has_delta(self, scaled: _Scaled) -> bool:
        """Whether there is anything to find: estimates are of what is not zero."""
        return self.kind == "exact" or scaled.norm > 0

    @property
    def _nothing(self) -> Spectrum:
        """Of a delta of zeros."""
        return spectrum_of(np.zeros(min(self.base.shape)))

    def _values(
        self,
        deltas: Iterable[torch.Tensor],
        scaled: Sequence[_Scaled],
        idle: IdleThreads | None = None,
    ) -> list[np.ndarray]:
        """The singular values of deltas, over their scales."""
        if self.kind == "exact":
            return singular_values_of_each(deltas)
        if self.kind == "curve":
            return curves(deltas, [each.norm**2 for each in scaled])
        return heads(deltas, idle)

    def _spectrum(self, sigma: np.ndarray, scaled: _Scaled) -> Spectrum:
        """Of singular values over the scale."""
        is_head = self.kind == "head"
        found = _spectrum_of_head(sigma, scaled.norm) if is_head else spectrum_of(sigma)
        return replace(found, singular_value=found.singular_value * scaled.scale)


class _Scaled:
    """‖Δ‖ over `scale`, and that: a power of two, so that float32 holds powers of the values."""

    def __init__(self, norm: float) -> None:
        self.scale = scale_for(norm)
        self.norm = norm / self.scale

    def unit(self, delta: torch.Tensor) -> torch.Tensor:
        """The delta over the scale, in its own memory."""
        return delta if self.scale == 1 else delta.div_(self.scale)


def _spectrum_of_head(sigma: np.ndarray, norm: float) -> Spectrum:
    energy = np.minimum(np.cumsum(sigma**2) / norm**2, 1.0)
    stable = norm**2 / float(sigma[0] ** 2)
    return Spectrum(np.arange(1, len(sigma) + 1), sigma, energy, float("nan"), stable)
