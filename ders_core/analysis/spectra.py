"""Singular values of the deltas, and what they say about rank."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ders_core.analysis.head import head
from ders_core.analysis.krylov import curve, product_dtype
from ders_core.checkpoint import ExpertGroup
from ders_core.compute import kernels
from ders_core.compute.buffers import borrow
from ders_core.compute.magnitude import scale_for
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.compute.threads import IdleThreads, side_by_side, threads_for
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


def singular_values(delta: torch.Tensor) -> np.ndarray:
    """All singular values of a float32 matrix `[out, in]`, descending, float64 `[min(out, in)]`.

    From the eigenvalues of the shorter side's Gram matrix, in float64: right to about 1e−8 of σ₁.
    float32 would be right to 3e−4 of σ₁ only, and thousands of values of that size would lift the
    effective rank of a delta of low rank to a multiple.
    """
    thin = delta if delta.shape[0] <= delta.shape[1] else delta.T
    short = thin.shape[0]
    gram = torch.zeros(short, short, dtype=torch.float64, device=thin.device)
    for part in thin.split(max(1, GRAM_VALUES // max(short, 1)), 1):
        columns = part.double()
        gram.addmm_(columns, columns.T)
    squares = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    values: np.ndarray = squares.sqrt().cpu().numpy()
    return values


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


def spectrum(delta: torch.Tensor) -> Spectrum:
    """The exact spectrum of one delta `[out, in]` float32."""
    return spectrum_of(singular_values(delta))


def group_spectra(
    group: ExpertGroup,
    base: torch.Tensor,
    norms: np.ndarray,
    kind: Spectra,
    device: torch.device | str = "cpu",
    kept: torch.Tensor | None = None,
) -> list[Spectrum]:
    """One for each expert's delta.

    base: `[out, in]` in storage dtype on the CPU. norms: ‖Δ_i‖ `[K]`. kind: not "none". kept: the
    weights `[K, out, in]` as `group_statistics` fills them; None to read each expert again.
    """
    where = torch.device(device)
    exact = kind == "exact" or min(base.shape) <= EXACT_BELOW
    dtype = torch.float32 if exact else product_dtype(where)
    held = base.numel() * (base.dtype.itemsize + dtype.itemsize)
    threads = threads_for(group.shape[0], held, where)
    with ExitStack() as memory, side_by_side(where, threads) as pool:
        there, idle = base.to(where), IdleThreads(pool, threads - 1)
        desks = deque(_Desk(there, dtype, memory, kept) for _ in range(threads))

        def find(expert: int) -> Spectrum:
            norm = float(norms[expert])
            if not norm and not exact:
                return spectrum_of(np.zeros(min(base.shape)))
            desk = desks.popleft()
            try:
                return found_in(desk.delta(group, expert), norm)
            finally:
                desks.append(desk)

        def found_in(delta: torch.Tensor, norm: float) -> Spectrum:
            scale = scale_for(norm)
            if scale != 1:
                delta /= scale
            share = norm / scale
            if exact:
                found = spectrum(delta)
            elif kind == "curve":
                found = spectrum_of(curve(delta, share**2))
            else:
                found = _spectrum_of_head(head(delta, idle), share)
            return replace(found, singular_value=found.singular_value * scale)

        return list(pool.map(find, range(group.shape[0])))


def _spectrum_of_head(sigma: np.ndarray, norm: float) -> Spectrum:
    energy = np.minimum(np.cumsum(sigma**2) / norm**2, 1.0)
    stable = norm**2 / float(sigma[0] ** 2)
    return Spectrum(np.arange(1, len(sigma) + 1), sigma, energy, float("nan"), stable)


class _Desk:
    """Where one thread at a time makes deltas; its memory is used for one expert after another."""

    def __init__(
        self,
        base: torch.Tensor,
        dtype: torch.dtype,
        memory: ExitStack,
        kept: torch.Tensor | None,
    ) -> None:
        shape = tuple(base.shape)
        self._base, self._kept = base, kept
        if kept is None:
            self._weight = memory.enter_context(borrow(shape, base.dtype))
        if base.device.type == "cpu":
            self._delta = memory.enter_context(borrow(shape, dtype))
        else:
            self._delta = torch.empty(shape, dtype=dtype, device=base.device)

    def delta(self, group: ExpertGroup, expert: int) -> torch.Tensor:
        """Δ_i `[out, in]`, rounded once; valid until the next one."""
        weight = self._read(group, expert).to(self._base.device)
        if self._delta.dtype == torch.float32 and kernels.takes_stored(weight, self._base):
            from ders_core.compute.kernels import differences

            minuend, subtrahend = (kernels.bits(each).reshape(-1) for each in (weight, self._base))
            kind, deltas = kernels.kind_of(weight.dtype), self._delta.view(-1).numpy()
            differences.subtract(minuend, subtrahend, kind, deltas)
            return self._delta
        if weight.dtype == self._delta.dtype:
            return torch.sub(weight, self._base, out=self._delta)
        for rows in row_pieces(weight.shape, chunk_values(weight.device)):
            self._delta[rows] = weight[rows].float().sub_(self._base[rows].float())
        return self._delta

    def _read(self, group: ExpertGroup, expert: int) -> torch.Tensor:
        """W_i in storage dtype, on the CPU."""
        if self._kept is not None:
            return self._kept[expert]
        group.experts[expert].read_into(self._weight, slice(0, group.shape[1]))
        return self._weight
